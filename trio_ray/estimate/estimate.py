"""The whole estimate: what the job takes, and what its cache is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trio_ray.config import JobConfig, codec_spec
from trio_ray.estimate.auto_codec import ASSUMED_RATIO, OwnCodec, assumed, calibrated_here
from trio_ray.estimate.choices import GB, Choice, Terms, Use, verdict
from trio_ray.estimate.draw import DrawnCorpus, draw_corpus
from trio_ray.estimate.measured import Machine, Measurement
from trio_ray.estimate.parts import QUARANTINE_TABLE_BYTES, PartShares, probe_shares
from trio_ray.estimate.prices import Prices
from trio_ray.estimate.restore_rates import MEASURED_ON, quality_of, rate_of
from trio_ray.estimate.sizes import MemberSize, SizeModel
from trio_ray.estimate.times import SampleTimes, SampleWork, count_work
from trio_ray.estimate.workload import Workload, make_preparer, prepare_workload
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.codecs.registry import full_spec, make_codec
from trio_ray.kv.codecs.transform import Transform
from trio_ray.model.checkpoint import check_checkpoint
from trio_ray.model.loading import resolve_dtype
from trio_ray.model.replica import Replica
from trio_ray.precompute.part_size import PartSize
from trio_ray.store.inputs import StoreOpener
from trio_ray.tensors import torch_threads

INDICES = MemberSize("indices", None, 0.0, 1.0, "encoded")


@dataclass(frozen=True)
class EstimateSettings:
    """The question that an estimate answers.

    Attributes:
        config: the job.
        samples: to draw.
        codecs: to weigh, by the name that they were asked for with.
        flop_per_s: of the given GPU, as it is reached in practice; None measures this machine.
        seconds: to measure for, at least.
        replicas: that will work on the job.
        bandwidth_gb_per_s: that one replica reads and writes the cache with; None if not known.
        prices: of everything.
        use: what the cache will be read for.
    """

    config: JobConfig
    samples: int
    codecs: Mapping[str, str | Mapping[str, Any]]
    flop_per_s: float | None
    seconds: float
    replicas: int
    bandwidth_gb_per_s: float | None
    prices: Prices
    use: Use


@dataclass(frozen=True)
class CorpusFacts:
    """The corpus. `samples` counts good and bad ones, exactly or as an estimate; means are over the drawn good ones."""

    shards: int
    unreadable_shards: int
    input_bytes: int
    drawn_samples: int
    samples: int
    samples_exact: bool
    stored_samples: int
    bad_share: float
    bad_drawn: dict[str, int]
    passed_over_drawn: int
    rows_per_sample: float
    image_tokens_per_sample: float
    encoded_images_per_sample: float
    encoded_tiles_per_sample: float


@dataclass(frozen=True)
class JobCost:
    """What precomputing takes, as the job is configured.

    Attributes:
        bytes_per_sample: stored of a sample, its row and its share of the tar included.
        total_bytes: of the whole cache: tars, tables, records.
        parts: of the output.
        gpu_hours: of all replicas together, while there is work: the model, or the upload at the given bandwidth.
        wall_s: on `replicas` replicas, loading included where it was measured; without Ray's start.
        replicas: that work; never more than shards.
        compute_cost, storage_cost: $; None where no price was given. Storage for `Prices.months`.
    """

    level: str
    codec: str | None
    bytes_per_sample: float
    total_bytes: int
    tar_bytes: int
    parts: int
    gpu_hours: float
    wall_s: float
    replicas: int
    compute_cost: float | None
    storage_cost: float | None


@dataclass(frozen=True)
class Estimate:
    """What was given or measured, what follows from it, and in one sentence what to do.

    `work` counts FLOP for one sample; `times` are seconds of one replica for one sample. `codec_note` says what stands
    for a codec that the job will choose itself, `restore_note` where the rates of restoring come from.
    """

    corpus: CorpusFacts
    work: SampleWork
    times: SampleTimes
    job: JobCost
    bandwidth_gb_per_s: float | None
    prices: Prices
    choices: tuple[Choice, ...]
    verdict: str
    codec_note: str | None
    restore_note: str


@dataclass(frozen=True)
class _Sizes:
    """The cost of storing, measured or computed. `job` is the job's own level and codec."""

    job: MemberSize
    choices: tuple[MemberSize, ...]
    restore_s: Mapping[str, float]
    shares: PartShares


def make_estimate(settings: EstimateSettings, on_step: Callable[[str], None] = lambda what: None) -> Estimate:
    """Estimate a job and weigh its cache.

    Raises:
        ConfigError: model, method or input cannot work; names the field. Nothing is written in any case.
        CodecError: a codec that is not known, or whose basis cannot be read.
    """
    config = settings.config
    checkpoint = check_checkpoint(config.model, config.prompt)
    model_config = checkpoint.config
    method = config.method.build(model_config.get_text_config().num_hidden_layers)
    schedule = method.schedule
    on_step("reading a sample of the corpus")
    corpus = draw_corpus(config, settings.samples)
    workload = prepare_workload(corpus.runs, make_preparer(config, checkpoint, schedule))
    work = count_work(model_config, workload, schedule, method.selector.proxy_rows)
    facts = _facts(corpus, workload)
    codecs = {name: _codec(choice, config) for name, choice in settings.codecs.items()}
    if settings.flop_per_s is None:
        replica, load_s = _load(config, on_step)
        dtype = replica.dtype
        own = _own_codec(config, lambda: calibrated_here(config, replica, workload))
        if isinstance(own.codec, Transform):
            codecs.setdefault(_own_name(config), own.codec)
        machine = Machine(config, replica, method, own.codec, load_s)
        with torch_threads(config.replicas.torch_threads):
            measured = machine.measure(corpus, workload, codecs, settings.seconds, on_step)
        model = SizeModel(config, model_config, method, dtype, workload)
        times, sizes = measured.times, _measured_sizes(config, measured, model)
    else:
        on_step("computing sizes")
        dtype = resolve_dtype(config.model.dtype, torch.device("cuda"))
        model = SizeModel(config, model_config, method, dtype, workload)
        own = _own_codec(config, lambda: assumed(config, facts.stored_samples))
        times, sizes = work.times(settings.flop_per_s), _computed_sizes(config, codecs, own.codec, model)
    part = PartSize(config, schedule, model_config, dtype)
    size = part.samples_made_smaller(own.times_smaller) if own.times_smaller else part.samples(own.codec)
    job = _job_cost(settings, corpus, facts, times, sizes, size)
    terms = Terms(
        times, facts.stored_samples, sizes.shares.row, settings.bandwidth_gb_per_s, settings.prices, settings.use
    )
    by_name = {_own_name(config): own.codec, **codecs}
    choices = tuple(
        terms.choice(item, sizes.restore_s[item.codec], quality_of(by_name[item.codec]))
        if item.codec is not None
        else terms.choice(item)
        for item in sizes.choices
    )
    here = times.source == "measured"
    advice = verdict(choices, settings.use, has_first_token=config.cache.scope == "prompt")
    return Estimate(
        facts, work, times, job, settings.bandwidth_gb_per_s, settings.prices, choices, advice,
        own.note, "measured here" if here else f"as measured on {MEASURED_ON}",
    )  # fmt: skip


def _load(config: JobConfig, on_step: Callable[[str], None]) -> tuple[Replica, float]:
    on_step("loading the model")
    started = time.perf_counter()
    return Replica.load(config.model, config.prompt), time.perf_counter() - started


def _codec(choice: str | Mapping[str, Any], config: JobConfig) -> Codec:
    """A codec; the basis of a calibrated one is read from where the settings say that it lies."""
    opener = StoreOpener(config.s3)
    return make_codec(full_spec(choice), lambda place: opener.read(place))


def _own_codec(config: JobConfig, auto: Callable[[], OwnCodec]) -> OwnCodec:
    """The job's codec; None where it stores no keys and values, or where `auto` only assumes one."""
    if config.cache.level != "kv":
        return OwnCodec(None, None)
    return auto() if config.cache.chooses_codec else OwnCodec(_codec(codec_spec(config.cache), config), None)


def _own_name(config: JobConfig) -> str:
    codec = config.cache.codec
    return codec if isinstance(codec, str) else str(codec["name"])


def _measured_sizes(config: JobConfig, measured: Measurement, model: SizeModel) -> _Sizes:
    name = _own_name(config) if config.cache.level == "kv" else None
    own = MemberSize(config.cache.level, name, measured.member_bytes, 1.0, "encoded")
    choices = (INDICES, model.embeds(), *measured.sizes)
    return _Sizes(own, choices, measured.restore_s, measured.shares)


def _computed_sizes(
    config: JobConfig, codecs: Mapping[str, Codec], own_codec: Codec | None, model: SizeModel
) -> _Sizes:
    choices = (INDICES, model.embeds(), *(model.kv(name, codec) for name, codec in codecs.items()))
    if own_codec is not None:
        own = model.kv(_own_name(config), own_codec)
    elif config.cache.level == "kv":
        own = model.assumed(_own_name(config), ASSUMED_RATIO)
        choices = (*choices, own)
    else:
        own = next(choice for choice in choices if choice.level == config.cache.level)
    plain = model.plain_bytes()
    by_name = {_own_name(config): own_codec, **codecs}
    restore = {c.codec: rate_of(by_name[c.codec]).seconds(plain) for c in choices if c.codec is not None}
    return _Sizes(own, choices, restore, probe_shares(model, own))


def _facts(corpus: DrawnCorpus, workload: Workload) -> CorpusFacts:
    samples = round(sum(corpus.items))
    return CorpusFacts(
        shards=len(corpus.shards),
        unreadable_shards=corpus.unreadable,
        input_bytes=sum({shard.uri: shard.size for shard in corpus.shards}.values()),
        drawn_samples=sum(map(len, corpus.runs)),
        samples=samples,
        samples_exact=corpus.exact,
        stored_samples=round(samples * workload.stored_share),
        bad_share=workload.bad_share,
        bad_drawn=workload.bad,
        passed_over_drawn=workload.passed_over,
        rows_per_sample=workload.rows,
        image_tokens_per_sample=workload.image_tokens,
        encoded_images_per_sample=workload.encoded_images,
        encoded_tiles_per_sample=workload.encoded_tiles,
    )


def _job_cost(
    settings: EstimateSettings, corpus: DrawnCorpus, facts: CorpusFacts, times: SampleTimes, sizes: _Sizes, size: int
) -> JobCost:
    prices, own = settings.prices, sizes.job
    stored = facts.stored_samples
    parts = sum(max(1, math.ceil(items / size)) for items in corpus.items)
    per_part = facts.samples / parts
    bad_parts = parts * (1 - (1 - facts.bad_share) ** per_part)
    total = stored * (own.bytes + sizes.shares.row) + parts * sizes.shares.part + bad_parts * QUARANTINE_TABLE_BYTES
    bandwidth = settings.bandwidth_gb_per_s
    upload_s = 0.0 if bandwidth is None else total / (GB * bandwidth)
    seconds = max(stored * times.precompute_s, upload_s)
    replicas = min(settings.replicas, len(corpus.shards))
    return JobCost(
        level=own.level,
        codec=own.codec,
        bytes_per_sample=total / max(1, stored),
        total_bytes=round(total),
        tar_bytes=round(own.bytes * stored),
        parts=parts,
        gpu_hours=seconds / 3600,
        wall_s=seconds / replicas + (times.load_s or 0.0),
        replicas=replicas,
        compute_cost=prices.compute(seconds),
        storage_cost=prices.storage(total),
    )
