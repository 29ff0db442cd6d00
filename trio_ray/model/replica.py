"""One LLaVA-NeXT model on one device, from prepared samples to pruned prefixes and on to answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trio_ray.config import MethodConfig, ModelConfig, PromptConfig
from trio_ray.errors import ConfigError
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.embeds import Embeds, EmbedsBatch
from trio_ray.kv.prefix import Prefix
from trio_ray.method.known_indices import KnownIndices
from trio_ray.method.rows import PackedRows
from trio_ray.method.schedule import (
    AUTHORS_ENCODER_KEEP,
    AUTHORS_KEEP,
    DEFAULT_RETENTION,
    PLUS_KEEP,
    Schedule,
    default_prune_points,
    plus_prune_points,
)
from trio_ray.method.selector import Positions, Selector
from trio_ray.method.selectors import selector_named
from trio_ray.method.visionzip import VisionZip
from trio_ray.model.attention import Backend, choose_backend, packed_attention
from trio_ray.model.conversation import Conversation
from trio_ray.model.decode.engine import Engine, generate
from trio_ray.model.decoder import Decoder, default_device
from trio_ray.model.image_scope import up_to_images
from trio_ray.model.known import KnownMethod, Scope, check_reduction
from trio_ray.model.loading import load_model, model_folder, read_model_config, resolve_dtype
from trio_ray.model.matrix import why_not_fp8
from trio_ray.model.prefill import Prefill, pruned_prefill
from trio_ray.model.prepare import PreparedImage, PreparedSample, SamplePreparer
from trio_ray.model.prompt import PromptWriter
from trio_ray.model.retained import retained_embeds
from trio_ray.model.tiles import Tiler
from trio_ray.model.vision import VisionEncoder
from trio_ray.source.sample import Turn
from trio_ray.tensors import to_device


@dataclass
class Replica:
    """A loaded model and everything a batch passes through."""

    decoder: Decoder
    vision: VisionEncoder
    writer: PromptWriter
    tiler: Tiler
    image_token_id: int
    stop_tokens: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    attention: Backend
    model: torch.nn.Module
    _last_image: tuple[str, Tensor] | None = None

    @classmethod
    def load(
        cls, config: ModelConfig, prompt: PromptConfig | None = None, device: torch.device | None = None
    ) -> Replica:
        """Load a model. Raises `ConfigError` where the configuration cannot be met."""
        device = device or default_device()
        folder = model_folder(config)
        model_config = read_model_config(folder)
        dtype = resolve_dtype(config.dtype, device)
        attention = choose_backend(config.attention, device, dtype)
        if config.matmul == "fp8" and (reason := why_not_fp8(device, dtype)):
            raise ConfigError("model.matmul", f"fp8 cannot be used: {reason}")
        loaded = load_model(folder, dtype, device)
        decoder = Decoder.of(loaded.model.model.language_model, loaded.model.lm_head)
        tiler = Tiler.from_processor(loaded.image_processor, model_config.vision_config.patch_size)
        template = prompt.template if prompt else None
        stop = loaded.model.generation_config.eos_token_id
        return cls(
            decoder=decoder.in_fp8() if config.matmul == "fp8" else decoder,
            vision=VisionEncoder(loaded.model.model, tiler, dtype),
            writer=PromptWriter(loaded.processor, model_config.image_token_id, template),
            tiler=tiler,
            image_token_id=model_config.image_token_id,
            stop_tokens=tuple(stop) if isinstance(stop, list) else () if stop is None else (stop,),
            device=device,
            dtype=dtype,
            attention=attention,
            model=loaded.model,
        )

    def preparer(self, max_pixels: int, instruction: str | None = None, with_answers: bool = False) -> SamplePreparer:
        """The CPU side that belongs to this model.

        Args:
            max_pixels: larger images are rejected.
            instruction: stands in for every sample's own text (scope image).
            with_answers: tokenize the true answers too.

        Raises:
            ConfigError: answers are wanted, and the model has no stop token to end them with.
        """
        if with_answers and not self.stop_tokens:
            raise ConfigError(
                "cache.targets", "the model's generation_config.json names no eos_token_id to end answers"
            )
        return SamplePreparer(
            self.tiler,
            self.writer,
            self.image_token_id,
            self.decoder.context,
            max_pixels,
            instruction,
            self.stop_tokens if with_answers else (),
        )

    def prefill(
        self,
        samples: Sequence[PreparedSample],
        schedule: Schedule,
        selector: Selector,
        top_k: int = 1,
        zipper: VisionZip | None = None,
    ) -> list[Prefix]:
        """The prefixes of `prefill_batch`, one by one; their tensors are views of the batch's, on the device."""
        return self.prefill_batch(samples, schedule, selector, top_k, zipper).split()

    def prefill_batch(
        self,
        samples: Sequence[PreparedSample],
        schedule: Schedule,
        selector: Selector,
        top_k: int = 1,
        zipper: VisionZip | None = None,
        scope: Scope = "prompt",
    ) -> PrefixBatch:
        """Pruned prefixes of a batch, packed, on the device, which may still be at work on them.

        Args:
            samples: the batch.
            schedule: how many image tokens each sample keeps where.
            selector: which ones.
            top_k: entries wanted of the first token's distribution.
            zipper: does the schedule's first prune point, which must be 0, behind the vision tower.
            scope: "image" selects with the whole prompt in view, then leaves off what stands behind the last image.
        """
        return self._prefill(samples, _budgets(schedule, samples), schedule, selector, zipper).prefixes(top_k, scope)

    def prefill_with_embeds(
        self,
        samples: Sequence[PreparedSample],
        schedule: Schedule,
        selector: Selector,
        top_k: int = 1,
        zipper: VisionZip | None = None,
        scope: Scope = "prompt",
    ) -> tuple[PrefixBatch, EmbedsBatch]:
        """As `prefill_batch`, and the input embeddings that are left behind the first prune point."""
        done = self._prefill(samples, _budgets(schedule, samples), schedule, selector, zipper)
        return done.prefixes(top_k, scope), done.embeds(scope)

    def prefill_known(
        self, samples: Sequence[PreparedSample], kept: Sequence[Sequence[Sequence[int]]], method: KnownMethod
    ) -> list[Prefix]:
        """The prefixes of samples whose kept tokens are known: nothing is scored.

        On the same machine and in the same batches they are, bit for bit, those that were selected.

        Args:
            samples: prepared anew from the same input, under the method's instruction if it has one.
            kept: of each sample the column `kept` of its row.
            method: how the cache was made (`PrunedCache.method`).

        Raises:
            KnownIndicesError: the indices cannot be those of these samples, or the encoder's reduction, made anew, has
                left others.
        """
        selector = method.selector(samples, kept)
        done = self._prefill(samples, selector.budgets(), method, selector, method.zipper)
        return done.prefixes(method.top_k, method.scope).split()

    @torch.no_grad()
    def prefill_embeds(
        self, embeds: Sequence[Embeds], top_k: int = 1, positions: Positions = "compact"
    ) -> list[Prefix]:
        """Prefixes from stored input embeddings: every layer holds all of their rows, and nothing more is dropped.

        Args:
            embeds: of a batch.
            top_k: entries wanted of the first token's distribution; 0 for embeddings that end with the image.
            positions: "compact" numbers the rows from 0 on, as an engine does that gets them as a prompt; "original"
                leaves each row where it was.
        """
        rows = PackedRows.pack([~item.text.cpu() for item in embeds], self.device)
        if positions == "original":
            position = to_device(torch.cat([item.position.long().cpu() for item in embeds]), self.device)
            rows = replace(rows, position=position, ends=tuple(item.length for item in embeds))
        hidden = torch.cat([item.rows.to(self.device, self.dtype) for item in embeds])
        attention = packed_attention(self.attention)
        budgets = [()] * len(embeds)
        prefill = pruned_prefill(self.decoder, hidden, rows, (), budgets, KnownIndices(), attention)
        return prefill.prefixes(top_k).split()

    def _prefill(
        self,
        samples: Sequence[PreparedSample],
        budgets: Sequence[Sequence[int]],
        points: Schedule | KnownMethod,
        selector: Selector,
        zipper: VisionZip | None,
    ) -> _Prefilled:
        hidden, rows = self.embed(samples, [budget[0] for budget in budgets] if zipper else None, zipper)
        if zipper and isinstance(selector, KnownIndices):
            check_reduction(samples, selector.kept, rows)
        attention = packed_attention(self.attention)
        prefill = pruned_prefill(self.decoder, hidden, rows, points.prune_points, budgets, selector, attention)
        return _Prefilled(hidden, prefill)

    @torch.no_grad()
    def embed(
        self,
        samples: Sequence[PreparedSample],
        reduced_to: Sequence[int] | None = None,
        zipper: VisionZip | None = None,
    ) -> tuple[Tensor, PackedRows]:
        """(T, d) packed input embeddings of whole prompts, image features in place, and their layout.

        With a `zipper`, sample s has only `reduced_to[s]` image tokens, and its rows' `image_index` says which.
        """
        if reduced_to is None or zipper is None:
            ids = self._input_ids(samples)
            features = self._image_features(samples)
            tokens = [features[image.hash] for sample in samples for image in sample.images]
            index = None
        else:
            shares = [_share(count, sample.images) for count, sample in zip(reduced_to, samples, strict=True)]
            ids = self._input_ids(samples, shares)
            tokens, index = self._reduced_features(samples, shares, zipper)
        rows = PackedRows.pack([run == self.image_token_id for run in ids], self.device)
        hidden = self.decoder.embed(to_device(torch.cat(ids), self.device))
        hidden[rows.image_rows] = torch.cat(tokens)
        return hidden, rows if index is None else rows.renumbered(index)

    def _input_ids(
        self, samples: Sequence[PreparedSample], image_tokens: Sequence[Sequence[int]] | None = None
    ) -> list[Tensor]:
        """Of each sample (rows,) int64, one id a row; `image_tokens` of its images where they are not all there.

        From one small tensor of all prompts: making tensors of long lists keeps Python's lock for long.
        """
        if image_tokens is None:
            image_tokens = [[image.tokens for image in sample.images] for sample in samples]
        ids = torch.tensor([token for sample in samples for token in sample.prompt_ids])
        times = torch.ones_like(ids)
        times[ids == self.image_token_id] = torch.tensor([count for counts in image_tokens for count in counts])
        texts = [len(sample.prompt_ids) - len(sample.images) for sample in samples]
        rows = [text + sum(counts) for text, counts in zip(texts, image_tokens, strict=True)]
        return list(ids.repeat_interleave(times).split(rows))

    def converse(self, prefixes: Sequence[Prefix], prompts: Sequence[str]) -> Conversation:
        """Conversations that begin with stored prefixes, of the prompts that these cover (column `prompt`).

        Load the replica with the cache's own `PromptConfig`: another template is refused when something is asked.
        """
        return Conversation(Engine(self.decoder), self.writer, self.stop_tokens, prefixes, prompts)

    def ask(
        self,
        prefixes: Sequence[Prefix],
        prompts: Sequence[str],
        questions: Sequence[str | Sequence[Turn]],
        max_new_tokens: int,
    ) -> list[str]:
        """Greedy answers to one question behind each prefix of scope image, as text; lengths may differ.

        Args:
            prefixes: end with their images.
            prompts: what they cover (column `prompt`).
            questions: one for each: a text, or several turns that end with the user's.
            max_new_tokens: longest answer.

        Raises:
            PromptError: the model's template does not begin a prompt as the prefix does.
        """
        return self.converse(prefixes, prompts).ask(questions, max_new_tokens)

    def generate(self, prefixes: Sequence[Prefix], max_new_tokens: int) -> list[str]:
        """Greedy answers from prefixes of any lengths, as text. Raises `NoFirstToken` for those of scope image."""
        answers = generate(self.decoder, prefixes, max_new_tokens, self.stop_tokens)
        return [self.writer.decode(answer) for answer in answers]

    def _image_features(self, samples: Sequence[PreparedSample]) -> dict[str, Tensor]:
        """Image tokens by image hash; each image passes the tower once, also one that the batch before ended with."""
        known = dict([self._last_image]) if self._last_image else {}
        wanted: dict[str, PreparedImage] = {
            image.hash: image for sample in samples for image in sample.images if image.hash not in known
        }
        if wanted:
            images = list(wanted.values())
            features = self.vision.encode(self._tiles(images))
            maps, tiles = [image.token_map for image in images], [len(image.tiles) for image in images]
            known.update(zip(wanted, self.vision.image_tokens(features.hidden, maps, tiles), strict=True))
        last = samples[-1].images[-1].hash
        self._last_image = (last, known[last].clone())  # a view would keep the tokens of all the batch's images
        return known

    def _reduced_features(
        self, samples: Sequence[PreparedSample], shares: Sequence[Sequence[int]], zipper: VisionZip
    ) -> tuple[list[Tensor], Tensor]:
        """Each image's reduced tokens, and the numbers of all of them among their samples' original image tokens.

        Each image passes the tower once, however many samples ask about it.
        """
        images = {image.hash: image for sample in samples for image in sample.images}
        number = {digest: at for at, digest in enumerate(images)}
        features = self.vision.encode(self._tiles(list(images.values())), with_attention=True)
        maps, tiles = [i.token_map for i in images.values()], [len(i.tiles) for i in images.values()]
        keep = [
            (number[image.hash], count)
            for sample, share in zip(samples, shares, strict=True)
            for image, count in zip(sample.images, share, strict=True)
        ]
        reduced = self.vision.reduced_tokens(features, maps, tiles, keep, zipper)
        first = [
            sum(image.tokens for image in sample.images[:n]) for sample in samples for n in range(len(sample.images))
        ]
        index = torch.cat([numbers + start for (_, numbers), start in zip(reduced, first, strict=True)])
        return [tokens for tokens, _ in reduced], index

    def _tiles(self, images: Sequence[PreparedImage]) -> Tensor:
        return to_device(torch.cat([image.tiles for image in images]), self.device)


@dataclass(frozen=True)
class _Prefilled:
    """A prefill, and the input embeddings, (T, d), that it began with."""

    hidden: Tensor
    prefill: Prefill

    def prefixes(self, top_k: int, scope: Scope) -> PrefixBatch:
        if scope == "image":
            return up_to_images(self.prefill.prefixes(0), self.prefill.rows.tails)
        return self.prefill.prefixes(top_k)

    def embeds(self, scope: Scope) -> EmbedsBatch:
        rows = self.prefill.rows
        tails = rows.tails if scope == "image" else (0,) * len(rows.tails)
        return retained_embeds(self.hidden, rows, self.prefill.left[0] if self.prefill.left else rows, tails)


def _budgets(schedule: Schedule, samples: Sequence[PreparedSample]) -> list[tuple[int, ...]]:
    return [schedule.counts(sample.image_tokens) for sample in samples]


def _share(count: int, images: Sequence[PreparedImage]) -> list[int]:
    """Split a sample's budget over its images by their tokens."""
    total, given, shares = sum(image.tokens for image in images), 0, []
    tokens = 0
    for image in images:
        tokens += image.tokens
        shares.append(count * tokens // total - given)
        given += shares[-1]
    return shares


def make_schedule(config: MethodConfig, layers: int) -> Schedule:
    """The schedule that a configuration means for a decoder of `layers` layers.

    Raises:
        ConfigError: a prune point beyond the last layer, or a retention that the prune points cannot meet.
    """
    retention = config.retention
    if retention is None and config.tokens is None and config.keep is None:
        retention = DEFAULT_RETENTION
    points = config.prune_points or _default_points(config, layers, retention)
    if points[-1] >= layers:
        raise ConfigError("method.prune_points", f"{points[-1]} is beyond the model's last layer, {layers - 1}")
    weights = config.weights or _default_weights(config, len(points))
    if config.keep is None and len(weights) != len(points):
        message = f"{len(points)} prune points need as many weights; there are defaults for {len(weights)}"
        raise ConfigError("method.weights", message)
    try:
        return Schedule(layers, points, retention, config.tokens, config.keep, weights)
    except ValueError as error:
        raise ConfigError("method.retention", str(error)) from None


def _default_points(config: MethodConfig, layers: int, retention: float | None) -> tuple[int, ...]:
    if config.encoder:
        return 0, layers // 2
    if config.selector == "trio-plus":
        return plus_prune_points(layers)
    return default_prune_points(layers, retention if config.tokens is None else 0.0)


def _default_weights(config: MethodConfig, points: int) -> tuple[float, ...]:
    if config.encoder:
        return AUTHORS_ENCODER_KEEP[-points:]
    return PLUS_KEEP[:points] if config.selector == "trio-plus" else AUTHORS_KEEP[-points:]


def make_selector(config: MethodConfig) -> Selector:
    """The selector that a configuration means."""
    return selector_named(config.selector, config.threshold, config.supervised_rows, config.positions)


def make_zipper(config: MethodConfig) -> VisionZip | None:
    """The encoder-side reduction that a configuration means, if any."""
    return VisionZip() if config.encoder == "visionzip" else None
