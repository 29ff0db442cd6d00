"""The one typed configuration of a job: from YAML, overridden by the command line.

Everything that can be checked without a model or a bucket is checked here, before anything is loaded. Settings that
change what is stored make up the cache identity (trio_ray/cache/identity.py): `prompt`, `method` and `source` (but for
its `image_root` and `allow_any_path`), of `model` its files, dtype and matmul, of `cache` all but the part sizes. The
others may differ between runs that add to one cache.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trio_ray.errors import ConfigError
from trio_ray.kv.codecs.registry import full_spec

if TYPE_CHECKING:
    from trio_ray.method.method import Method

BUNDLED_MODEL = "bundled"

DEFAULT_INSTRUCTION = "Describe the image in detail."

AUTO_CODEC = "auto"
"""A codec that the job calibrates itself, before it makes a cache."""

DEFAULT_TOKEN_BUDGET = 65536

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

LOCATION = "location"
"""Marks a setting that may name local files or folders."""


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _commented_out_means_the_defaults(cls, values: object) -> object:
        return {} if values is None else values  # YAML gives None for a section without a single line

    def absolute(self) -> Self:
        """The same settings with absolute local paths. Actors of a cluster work in other folders than their job."""
        changed: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Section):
                changed[name] = value.absolute()
            elif LOCATION in field.metadata and value:
                changed[name] = _absolute(value) if isinstance(value, str) else tuple(map(_absolute, value))
        return self.model_copy(update=changed)


def _absolute(location: str) -> str:
    return location if "://" in location else str(Path(location).expanduser().absolute())


S = TypeVar("S", bound=Section)


class ModelConfig(Section):
    """Which model makes the prefixes, and in what arithmetic."""

    name: str = Field(BUNDLED_MODEL, description="'bundled', a folder, or a Hugging Face hub name.")
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of a hub model. The job resolves it to a commit once, for all replicas.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Arithmetic and KV type. 'auto': bfloat16 on a GPU, float32 on a CPU."
    )
    attention: Literal["auto", "flash_attn", "fa3", "varlen", "sdpa"] = Field(
        "auto", description="Attention over packed rows; 'auto' takes the fastest that is installed."
    )

    matmul: Literal["dtype", "fp8"] = Field(
        "dtype",
        description="Matrix products of the decoder layers: in `dtype`, or in 8 bit floats scaled by rows (H100 and "
        "later), which is faster and changes what is stored a little (docs/measured/agreement.md).",
    )

    def absolute(self) -> ModelConfig:
        """See `Section`; the name of a hub model stays as it is."""
        is_folder = self.name != BUNDLED_MODEL and Path(self.name).expanduser().is_dir()
        return self.model_copy(update={"name": _absolute(self.name)}) if is_folder else self

    @property
    def label(self) -> str:
        """The model's name and, of a hub model, its revision; of a folder the whole path."""
        folder = Path(self.name).expanduser()
        if self.name != BUNDLED_MODEL and self.revision is None and folder.is_dir():
            return str(folder.resolve())
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


class PromptConfig(Section):
    """How a sample's turns become the model's prompt."""

    template: str | None = Field(
        None,
        description="Text with {prompt} in it, used instead of the model's chat template. It writes one user turn. "
        "'<image>' in it is where the images go; without it they go where the sample's text has it, or in front.",
    )

    @field_validator("template")
    @classmethod
    def _has_a_place_for_the_prompt(cls, value: str | None) -> str | None:
        if value is not None and "{prompt}" not in value:
            raise ValueError("has no {prompt} in it, so every sample would get the same prompt")
        return value


class MethodConfig(Section):
    """Which image tokens a prefix keeps. The defaults are those of TRIO's authors (arXiv 2602.04657)."""

    retention: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="Image tokens kept, as the mean over all decoder layers, of the tokens an image really has. "
        "0.111 where neither retention nor tokens is given.",
    )
    tokens: float | None = Field(
        None,
        gt=0.0,
        description="Instead of retention: a fixed budget, the mean number of image tokens a layer holds for a sample.",
    )
    schedule: Literal["given", "auto"] = Field(
        "given",
        description="auto: a new cache gets the prune points, weights, positions and selector settings under which the "
        "model's answers to samples of the input move least; a search finds them, and whatever is set here stays. "
        "given: what is set here, else the selector's defaults.",
    )
    prune_points: tuple[int, ...] | None = Field(
        None,
        description="Layers before which tokens are dropped, ascending. Default: the selector's, scaled to the model's "
        "depth; the first moves to 0 for a small retention, and where tokens are given.",
    )
    weights: tuple[float, ...] | None = Field(
        None,
        description="Relative number of tokens kept at each prune point. Default: the selector's.",
    )
    keep: tuple[int, ...] | None = Field(
        None,
        description="Instead of retention, tokens and weights: the number of tokens kept at each prune point.",
    )
    layout: Literal["ragged", "uniform"] = Field(
        "ragged",
        description="uniform: one prune before layer 0, so that every layer holds the same rows, at compact positions; "
        "other engines can take such prefixes. ragged: later layers may hold fewer rows.",
    )
    selector: str = Field(
        "trio",
        description="What decides which tokens stay: one of the selectors below, or module:Class for your own "
        "(docs/selectors.md). auto, with method.schedule: auto: of trio-plus, sieve and groups the one under which "
        "answers to samples of the input move least.",
    )
    settings: dict[str, Any] = Field(
        {}, description="The selector's own settings by name; each selector below says which it has."
    )
    positions: Literal["compact", "original"] | None = Field(
        None,
        description="What becomes of the kept rows' positions: closed up as the authors do, or left as they were. "
        "Default: the selector's.",
    )
    encoder: Literal["visionzip"] | None = Field(
        None,
        description="Does the first prune point, which is then 0, behind the vision tower (encoder-involved mode). "
        "Default prune points: 0 and half the depth, 96 : 32.",
    )

    full_depth: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = Field(
        0.0,
        description="Share of the decoder's layers, the first ones, that run on all image tokens: a prune point there "
        "drops tokens from what is stored, and from later layers. The text and the kept tokens have then read what is "
        "dropped, so answers move less. The retention counts what is stored, which is as small; prefill costs more. "
        "auto, with method.schedule: auto: the smallest share with which answers to samples of the input hardly move. "
        "Not with method.encoder, nor with cache.level embeds.",
    )
    dropped: Literal["lost", "represented"] | None = Field(
        None,
        description="Whether what is dropped is lost, or the kept rows weigh as much in attention as all did: their "
        "keys are moved, which any engine reads. Default: lost; with method.schedule: auto and method.layout: uniform, "
        "what moves answers less. Not with method.encoder, and with cache.level kv alone.",
    )

    @field_validator("prune_points")
    @classmethod
    def _points_ascend(cls, points: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if points is not None and (not points or any(p < 0 for p in points) or list(points) != sorted(set(points))):
            raise ValueError("must be ascending layer numbers from 0 on")
        return points

    @field_validator("weights")
    @classmethod
    def _weights_descend(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and (min(weights, default=0) <= 0 or list(weights) != sorted(weights, reverse=True)):
            raise ValueError("must be positive and not grow: a token once dropped does not come back")
        return weights

    @field_validator("keep")
    @classmethod
    def _counts_descend(cls, keep: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if keep is not None and (min(keep, default=0) < 0 or list(keep) != sorted(keep, reverse=True)):
            raise ValueError("must not be negative and not grow from one prune point to the next")
        return keep

    @model_validator(mode="after")
    def _settings_fit_together(self) -> MethodConfig:
        given = [name for name in ("retention", "tokens", "keep") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"method.{given[1]}", f"{' and '.join(given)} are both given; choose one")
        chosen = next((name for name in ("prune_points", "weights", "keep") if getattr(self, name) is not None), None)
        if self.schedule == "auto" and (chosen or self.encoder):
            raise ConfigError(f"method.{chosen or 'encoder'}", "is given, and method.schedule: auto would choose it")
        if self.full_depth == "auto" and self.schedule != "auto":
            raise ConfigError("method.full_depth", "auto is chosen with the schedule; set method.schedule: auto too")
        if self.selector == "auto" and self.schedule != "auto":
            raise ConfigError("method.selector", "auto is chosen with the schedule; set method.schedule: auto too")
        if self.selector == "auto" and self.settings:
            raise ConfigError("method.settings", "are a selector's own; name it instead of method.selector: auto")
        if self.keep is not None and self.prune_points is None:
            raise ConfigError("method.keep", "needs method.prune_points")
        if self.keep is not None and self.weights is not None:
            raise ConfigError("method.weights", "means nothing beside method.keep; give one of the two")
        for name in ("weights", "keep"):
            values = getattr(self, name)
            if values is not None and self.prune_points is not None and len(values) != len(self.prune_points):
                raise ConfigError(
                    f"method.{name}", f"has {len(values)} entries for {len(self.prune_points)} prune_points"
                )
        return self

    @model_validator(mode="after")
    def _can_be_built(self) -> MethodConfig:
        """Find an unknown selector, a setting that it does not have, and contradictions before any model is read."""
        # How deep the model is, and so what it can meet, is not known yet: a deep one that keeps all can meet anything.
        any_budget = {} if self.keep is not None else {"retention": 1.0, "tokens": None}
        self.model_copy(update=any_budget).build(max(32, (self.prune_points or (0,))[-1] + 1))
        return self

    def build(self, layers: int) -> Method:
        """The method that these settings mean for a decoder of `layers` layers; see `Method.build`.

        As long as `full_depth` is to be chosen, no layer runs on dropped tokens; in the place of a selector that is to
        be chosen there is trio-plus.
        """
        from trio_ray.method.method import Method  # imports torch, which takes seconds

        given = {name: getattr(self, name) for name in type(self).model_fields if name != "schedule"}
        if self.full_depth == "auto":
            given["full_depth"] = 0.0
        if self.selector == "auto":
            given["selector"] = "trio-plus"
        return Method.build(layers, **given)


class CacheConfig(Section):
    """What is stored of a sample, and how."""

    level: Literal["kv", "embeds", "indices"] = Field(
        "kv",
        description="What is stored beside the table's row: kv (keys and values, to decode from at once), embeds (the "
        "retained input embeddings, for engines that take prompt embeddings), indices (nothing: the row alone says "
        "which tokens to keep when the prompt is prefilled again).",
    )
    scope: Literal["prompt", "image"] = Field(
        "prompt",
        description="How far the prefix goes: the whole prompt; or up to the image's end, selected under a generic "
        "instruction, so that any question can follow later.",
    )
    instruction: str | None = Field(
        None,
        min_length=1,
        description="With scope image: the text under which tokens are selected; it is not stored. "
        f"Default: {DEFAULT_INSTRUCTION}",
    )
    targets: Literal["none", "top_k"] = Field(
        "none",
        description="top_k: where the corpus has an answer, the model's top_k log-probabilities at each of its tokens "
        "are stored, computed behind the pruned prefix.",
    )
    codec: str | dict[str, Any] = Field(
        AUTO_CODEC,
        description="How K and V become bytes. auto: of a new cache the job calibrates a transform basis on samples of "
        "its input, the coarsest that moves an answer token's distribution by 0.003 nats at most, measured; raw where "
        "that cannot be (fewer than 64 samples, scope image). Else raw (bit exact), int8, int4, int2; or a "
        "mapping with such a name and other parameters (jobs/CONFIGURATION.md).",
    )
    top_k: int = Field(
        8, ge=1, le=1024, description="Entries stored of the first token's distribution, and of targets."
    )
    part_bytes: int = Field(
        1 << 30, ge=1 << 16, description="Output bytes that one part (the unit of commit and resume) aims at."
    )
    part_samples: int | None = Field(
        None, ge=1, description="Samples a part; by default solved from part_bytes when the cache is created."
    )

    @field_validator("codec")
    @classmethod
    def _codec_is_known(cls, codec: str | dict[str, Any]) -> str | dict[str, Any]:
        if codec != AUTO_CODEC:
            full_spec(codec)
        return codec

    @field_validator("instruction")
    @classmethod
    def _instruction_places_no_image(cls, instruction: str | None) -> str | None:
        if instruction is not None and (not instruction.strip() or "<image>" in instruction):
            raise ValueError("must be a text without <image>; the images stand in front of it")
        return instruction

    @model_validator(mode="after")
    def _settings_fit_together(self) -> CacheConfig:
        if self.instruction is not None and self.scope != "image":
            raise ValueError("instruction means nothing to scope 'prompt'")
        if self.codec != AUTO_CODEC and self.level != "kv":
            raise ValueError(f"codec means nothing to level {self.level!r}, which stores no keys and values")
        return self

    @property
    def chooses_codec(self) -> bool:
        """Whether the job chooses a codec itself."""
        return self.level == "kv" and self.codec == AUTO_CODEC

    @property
    def names_codec(self) -> bool:
        """Whether there is one, and these settings say which."""
        return self.level == "kv" and self.codec != AUTO_CODEC

    @property
    def selected_under(self) -> str | None:
        """The generic instruction that stands in for each sample's own text, if any does."""
        return (self.instruction or DEFAULT_INSTRUCTION) if self.scope == "image" else None


class SourceConfig(Section):
    """How input files are read."""

    format: Literal["auto", "webdataset", "parquet", "jsonl", "json"] = Field(
        "auto", description="'auto' goes by the file's ending; 'json' is one array of records, read as a stream."
    )
    records: str | None = Field(
        None,
        description="For a .json file whose top level is an object: the field that holds the array of records, or '*' "
        "where each field is a record and its name the key.",
    )
    image_column: str = Field(
        "image",
        description="Parquet column or JSON field of the image(s); `*` stands for any text (`image_*`), and the images "
        "are then ordered by the numbers in the names.",
    )
    image_name: str | None = Field(
        None,
        description="Name of the image file, made from other fields, such as `{imageId}.jpg` or "
        "`COCO_val2014_{image_id:012d}.jpg`; it takes the place of image_column.",
    )
    image_root: Annotated[str | None, LOCATION] = Field(
        None, description="Folder of the images that records name; by default the file's own."
    )
    allow_any_path: bool = Field(
        False,
        description="Records may name images outside of image_root and the file's folder, also in other buckets.",
    )
    text_column: str | None = Field(
        None,
        description="Parquet column or JSON field of the prompt; by default conversations, messages, texts, question, "
        "prompt, text, caption.",
    )
    text_template: str | None = Field(
        None,
        description="The prompt, made from fields: `{question}`, and `{options}` for the lettered options of a "
        "multiple-choice question. A line whose fields are all empty is left out.",
    )
    text_required: bool | None = Field(
        None,
        description="Whether a sample without text is bad; by default yes, except with cache.scope 'image'.",
    )
    option_columns: tuple[str, ...] | None = Field(
        None,
        description="Fields of the options: one that holds a list, or one for each option; by default options, "
        "choices, A to Z, choice_a to choice_z.",
    )
    answer_column: str | None = Field(
        None,
        description="Column or field of the true answer; by default multiple_choice_answer, answer, answers, label.",
    )
    key_column: str | None = Field(
        None,
        description="Field of the sample's key; by default key, question_id, id, else `@` and the row's number.",
    )
    keys: Literal["record", "row"] = Field(
        "record",
        description="'row': the key is the file's name, `@` and the row's number, for files whose ids repeat.",
    )
    image_member: str | None = Field(
        None,
        description="WebDataset: ending of the image's member (`image.jpg`, `input.*`); by default any image, "
        "also numbered (`0.jpg`, `1.jpg`).",
    )
    text_member: str | None = Field(
        None, description="WebDataset: ending of the text's member (`outputs.txt`); by default json, then txt."
    )
    answer_member: str | None = Field(
        None, description="WebDataset: ending of the true answer's member (`cls`), if any."
    )
    key_until: Literal["first_dot", "last_dot"] = Field(
        "first_dot", description="WebDataset: where a member's key ends; 'last_dot' for base names that hold dots."
    )
    text_only: Literal["quarantine", "skip"] = Field(
        "quarantine",
        description="Rows that have no image and place none: quarantined as `text_only`, or passed over silently.",
    )
    turns: Literal["first", "each"] = Field(
        "first",
        description="Of a conversation with several questions: the first alone, or each one as a sample of its own, "
        "with the turns before it.",
    )
    rows_per_shard: int = Field(
        4096,
        ge=1,
        description="Rows of a Parquet, JSONL or JSON file that make one unit of work. A row group of Parquet of more "
        "rows and more than 16 MiB is one unit, because it can be read from its beginning alone.",
    )
    max_pixels: int = Field(100_000_000, ge=1, description="Images with more pixels are quarantined (bombs).")
    max_image_bytes: int = Field(
        1 << 28, ge=1, description="Image files with more bytes are quarantined; no more than this is read."
    )

    @field_validator("text_template", "image_name")
    @classmethod
    def _names_fields(cls, template: str | None) -> str | None:
        if template is not None:
            check_template(template)
        return template

    @field_validator("option_columns", mode="before")
    @classmethod
    def _one_column_is_a_list_too(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("image_member", "text_member", "answer_member")
    @classmethod
    def _without_leading_dot(cls, ending: str | None) -> str | None:
        return None if ending is None else ending.removeprefix(".").lower()

    @property
    def needs_text(self) -> bool:
        """Whether a sample without text is bad."""
        return self.text_required is not False


def template_fields(template: str) -> tuple[str, ...]:
    """Names of the fields that a template asks for, in order, each once."""
    return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name is not None))


def check_template(template: str) -> None:
    """Raise ValueError if a template cannot be filled in: it must name fields, and only plain ones."""
    names = template_fields(template)
    if not names:
        raise ValueError("names no field; write a field's name in braces, such as {question}")
    if wrong := [name for name in names if not name or not name.isidentifier()]:
        raise ValueError(f"{{{wrong[0]}}} is not the plain name of a field")


class S3Config(Section):
    """Where S3 is. Credentials come by the usual AWS ways (environment, profile, instance role)."""

    endpoint_url: str | None = Field(None, description="For anything that is not AWS; also AWS_ENDPOINT_URL.")
    region: str | None = Field(None, description="AWS region.")
    profile: str | None = Field(None, description="Profile of the AWS configuration files.")
    max_attempts: int = Field(8, ge=1, description="Tries of one request before the error counts.")
    part_mib: int = Field(16, ge=5, le=1024, description="Size of a multipart upload's pieces, MiB.")
    upload_threads: int = Field(16, ge=1, le=128, description="Pieces in flight for each object being written.")


class ActorConfig(Section):
    """What every actor of a job reserves, and how long the job waits for it. The settings are the same in every job."""

    gpus: float | None = Field(
        None, ge=0.0, description="GPUs a replica reserves; by default 1 where the cluster has any, else 0."
    )
    cpus: float = Field(1.0, gt=0.0, description="CPUs a replica reserves.")
    attempts: int = Field(
        3, ge=1, description="Times that a piece of work may fail or kill its replica before it is given up."
    )
    start_timeout_s: float = Field(1800.0, gt=0.0, description="Longest wait for the first replicas.")
    silence_limit_s: float = Field(
        1800.0,
        gt=0.0,
        description="A replica that loads or works and is silent for this long is killed; its work is tried again.",
    )

    @property
    def torch_threads(self) -> int:
        """Threads that torch computes with in a replica: one for each whole CPU that it reserves, at least one."""
        return max(1, math.floor(self.cpus))


class ReplicasConfig(ActorConfig):
    """How many replicas share the work of a job. Each is a Ray actor that hosts one model."""

    min: int = Field(1, ge=1, description="The job fails if fewer replicas than this can be started in time.")
    max: int = Field(1, ge=1, description="Replicas that the job asks the cluster for.")

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> ReplicasConfig:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class PipelineConfig(Section):
    """How a replica goes through its shards."""

    token_budget: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        DEFAULT_TOKEN_BUDGET,
        description="Prompt rows packed into one batch; one larger sample runs alone. 'auto': each replica tries on "
        "samples of its first shard what is fastest and fits into its memory, which takes it some seconds.",
    )
    decode_threads: int | None = Field(
        None,
        ge=1,
        description="Threads a replica decodes and tiles images in; by default a quarter of its CPUs (those that it "
        "reserves, or of its node's as large a share as it has of the GPUs), at least 2.",
    )
    encode_threads: int | None = Field(
        None,
        ge=1,
        description="Threads a replica puts coded prefixes into containers in, and compresses what the GPU has not; by "
        "default half of its CPUs, at least 2.",
    )
    storing: Literal["auto", "process", "replica"] = Field(
        "auto",
        description="Where prefixes are packed and written: in processes beside the replica, which costs memory and "
        "leaves the thread that feeds a GPU alone, or in the replica itself. auto: processes on a GPU.",
    )
    lookahead: int = Field(128, ge=1, description="Samples prepared ahead of the model.")
    max_bad_fraction: Fraction = Field(
        0.2,
        description="The job fails when more than this share of all samples in the cache is bad, whichever run has met "
        "them. Judged at the end, from 100 samples on, so that the order of the input does not matter. 1 accepts any "
        "share.",
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="A trial (`--limit`): up to so many samples, from shards all over the input, go into a cache of "
        "their own beside the output, which stays as it is.",
    )
    redo_damaged: bool = Field(
        False,
        description="Input files that were damaged when they were read and have changed since replace what was "
        "committed of them (`--redo-damaged`).",
    )

    @property
    def batch_rows(self) -> int:
        """Prompt rows packed into one batch as long as nothing has been tried: what is set, for 'auto' the default."""
        return DEFAULT_TOKEN_BUDGET if self.token_budget == "auto" else self.token_budget

    def decoders(self, cpus: int) -> int:
        """`decode_threads` of a replica with so many CPUs."""
        return self.decode_threads or max(2, cpus // 4)

    def encoders(self, cpus: int) -> int:
        """`encode_threads` of a replica with so many CPUs."""
        return self.encode_threads or max(2, cpus // 2)


class JobConfig(Section):
    """A precompute job."""

    input: Annotated[tuple[str, ...], LOCATION] = Field(
        (), description="Input shards: local paths or s3:// URIs, with globs and {a..b} brace ranges."
    )
    output: Annotated[str, LOCATION] = Field("", description="The cache: a local folder or s3://bucket/prefix.")
    model: ModelConfig = ModelConfig()
    prompt: PromptConfig = PromptConfig()
    method: MethodConfig = Field(default_factory=MethodConfig)  # its checks import torch, which takes seconds
    cache: CacheConfig = CacheConfig()
    source: SourceConfig = SourceConfig()
    s3: S3Config = S3Config()
    replicas: ReplicasConfig = ReplicasConfig()
    pipeline: PipelineConfig = PipelineConfig()

    @field_validator("input", mode="before")
    @classmethod
    def _one_uri_is_a_list_too(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @property
    def as_run(self) -> JobConfig:
        """The job as it is run: a trial has an output of its own, which its settings name."""
        limit = self.pipeline.limit
        if limit is None or not self.output:
            return self
        decides = self.model_dump_json(include={"input", "model", "prompt", "method", "cache", "source"})
        digest = hashlib.sha256(decides.encode("utf-8", "backslashreplace")).hexdigest()[:8]
        return self.model_copy(update={"output": f"{self.output.rstrip('/')}-trial-{limit}-{digest}"})

    @model_validator(mode="after")
    def _keys_represent_only_where_they_are_stored(self) -> JobConfig:
        level = self.cache.level
        if level == "kv":
            return self
        if self.method.dropped == "represented":
            raise ConfigError(
                "method.dropped", f"represented means nothing to cache.level {level}, which stores no keys"
            )
        if self.method.schedule == "auto":  # else the search might choose it
            # The section is frozen for its users; here it is still being made.
            self.__dict__["method"] = self.method.model_copy(update={"dropped": "lost"})
        return self

    @model_validator(mode="after")
    def _embeddings_have_read_nothing(self) -> JobConfig:
        if self.method.full_depth and self.cache.level == "embeds":
            raise ConfigError(
                "method.full_depth", "means nothing to cache.level embeds, which stores what no layer has run on"
            )
        return self

    @model_validator(mode="after")
    def _whether_text_is_needed(self) -> JobConfig:
        if self.source.text_required is None:
            required = self.cache.scope != "image"
            # The section is frozen for its users; here it is still being made.
            self.__dict__["source"] = self.source.model_copy(update={"text_required": required})
        return self


def settings_given(section: Section) -> set[str]:
    """Dotted names of the settings that the user gave, in whatever way; those left to their defaults are not there."""
    names: set[str] = set()
    for name in section.model_fields_set:
        value = getattr(section, name)
        names |= {f"{name}.{inner}" for inner in settings_given(value)} if isinstance(value, Section) else {name}
    return names


def codec_spec(cache: CacheConfig) -> dict[str, Any]:
    """All parameters of a cache's codec, as identity and headers hold them; it must not be `auto`."""
    return full_spec(cache.codec)


def load_config(
    path: str | Path | None = None, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> JobConfig:
    """The configuration of a precompute job; see `load_section`."""
    return load_section(JobConfig, path, overrides, values)


def load_section(
    kind: type[S],
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
) -> S:
    """Read a YAML file, then apply `key.path=value` overrides (values in YAML syntax), then `values` by dotted path.

    Args:
        kind: what the file configures, a `Section`.
        path: the file; none gives the defaults.
        overrides: from the command line.
        values: by dotted path.

    Raises:
        ConfigError: unreadable file, unknown key, or a value out of range; names the field.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError("--config", f"{path} cannot be read as YAML: {_in_one_line(error)}") from None
        if not isinstance(loaded or {}, dict):
            raise ConfigError("--config", f"{path} must hold a mapping of settings")
        tree = loaded or {}
    for override in overrides:
        dotted, sign, text = override.partition("=")
        if not sign:
            raise ConfigError("--set", f"{override!r} is not key=value")
        _put(tree, dotted.strip(), _override_value(kind, dotted.strip(), text))
    for dotted, value in (values or {}).items():
        _put(tree, dotted, value)
    return parse_section(kind, tree)


def _override_value(kind: type[Section], dotted: str, text: str) -> object:
    """The value that `--set` gives: YAML, but for a setting that is text what stands there, such as `{prompt}`."""
    is_text = _takes_text_alone(kind, dotted)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        if is_text:
            return text
        raise ConfigError(dotted, f"{text!r} is not a YAML value: {_in_one_line(error)}") from None
    return text if is_text and not isinstance(value, str | None) else value


def _takes_text_alone(kind: type[Section], dotted: str) -> bool:
    """Whether a setting is text, or may be left out, and can be nothing else."""
    name, _, rest = dotted.partition(".")
    field = kind.model_fields.get(name)
    if field is None:
        return False
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
        return _takes_text_alone(field.annotation, rest)
    return field.annotation in (str, str | None)


def parse_section(kind: type[S], tree: Mapping[str, Any]) -> S:
    """Validate a nested mapping. Raises `ConfigError` that names the first field at fault."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "configuration"
        if first["type"] == "extra_forbidden":
            raise ConfigError(field, f"is not a setting{_did_you_mean(kind, field)}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(field, f"{message} (got {first['input']!r})") from None


def setting_names(kind: type[Section]) -> Iterator[str]:
    """Dotted names of all settings of a section."""
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            yield from (f"{name}.{inner}" for inner in setting_names(section))
        else:
            yield name


def _did_you_mean(kind: type[Section], field: str) -> str:
    """A setting of nearly that name, or of that very name in another section."""
    known = list(setting_names(kind))
    *_, last = field.split(".")
    same = [name for name in known if name.rpartition(".")[2] == last]
    near = same or get_close_matches(field, known, n=1, cutoff=0.75)
    if not near and "." not in field:
        near = get_close_matches(field, kind.model_fields, n=1, cutoff=0.75)
    if not near:
        leaves = {name.rpartition(".")[2]: name for name in known}
        near = [leaves[leaf] for leaf in get_close_matches(last, leaves, n=1, cutoff=0.75)]
    return f"; did you mean {' or '.join(near[:3])}?" if near else "; jobs/CONFIGURATION.md lists all settings"


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _put(tree: dict[str, Any], dotted: str, value: object) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        child = tree[section]
        if not isinstance(child, dict):
            raise ConfigError(dotted, f"{section} is not a section")
        tree = child
    tree[name] = value
