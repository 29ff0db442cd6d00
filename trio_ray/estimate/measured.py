"""The speed of this machine on the drawn samples: first the job's own pipeline, which writes into a folder, then the
model alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median

import torch

from trio_ray.cluster.host_share import cpus_to_count_on
from trio_ray.config import JobConfig
from trio_ray.errors import ConfigError
from trio_ray.estimate.draw import DrawnCorpus, Item
from trio_ray.estimate.parts import PartShares, part_shares
from trio_ray.estimate.sizes import SAMPLE_HASH, MemberSize, encoded_size
from trio_ray.estimate.times import SampleTimes
from trio_ray.estimate.workload import Workload
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.container import write_container
from trio_ray.kv.embeds import Embeds
from trio_ray.kv.encode import code_batch, new_memory
from trio_ray.kv.prefix import Prefix
from trio_ray.kv.restore import read_containers
from trio_ray.method.method import Method
from trio_ray.model.decode.engine import generate as generate_tokens
from trio_ray.model.packing import pack
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.precompute.model_stage import ModelStage
from trio_ray.precompute.shard_run import ShardRunner
from trio_ray.precompute.shard_writer import PartReport, ShardWriter, StoringSpec
from trio_ray.precompute.token_budget import as_of_new_images
from trio_ray.source.shards import evenly
from trio_ray.store.commit_table import read_commits
from trio_ray.store.dataset import SCHEMA_VERSION, Dataset, package_version, utc_now
from trio_ray.store.inputs import StoreOpener
from trio_ray.store.opening import open_store
from trio_ray.tensors import measure

MODEL_SAMPLES = 16
"""Samples on which the model alone is timed, and which every codec compresses."""

TIMED_TOKENS = 4
"""Decoded behind each of them."""

PASSES = 2
"""Timed passes of the model alone; the faster one counts."""


@dataclass(frozen=True)
class JobPass:
    """A pass of the job's pipeline over the drawn items: wall and processor seconds, and the last pass's part."""

    wall_s: float
    cpu_s: float
    tar_bytes: int
    stored: int
    shares: PartShares


@dataclass(frozen=True)
class Measurement:
    """The results of the measurement.

    Attributes:
        times: of a sample.
        member_bytes: of a sample in the tar, as the job is configured.
        shares: of rows and parts.
        sizes: for every codec asked for, what is stored of a sample.
        restore_s: of each codec, from a container's bytes to keys and values on the device.
    """

    times: SampleTimes
    member_bytes: float
    shares: PartShares
    sizes: tuple[MemberSize, ...]
    restore_s: dict[str, float]


@dataclass(frozen=True)
class Machine:
    """A replica on this machine, with everything that a job would give it.

    Attributes:
        config: the job.
        replica: the loaded model.
        method: which tokens are kept.
        codec: the job's; None where it stores no keys and values.
        load_s: what loading took.
    """

    config: JobConfig
    replica: Replica
    method: Method
    codec: Codec | None
    load_s: float

    def measure(
        self, corpus: DrawnCorpus, workload: Workload, codecs: Mapping[str, Codec], seconds: float,
        on_step: Callable[[str], None],
    ) -> Measurement:  # fmt: skip
        """Measure for at least `seconds` the pipeline, then the model alone and the codecs."""
        on_step("the job's pipeline on the drawn samples")
        done = self._run_job(corpus, seconds)
        on_step("the model alone")
        samples = evenly(workload.samples, MODEL_SAMPLES)
        kept = self._prefixes(samples)
        pruned, unpruned, known, from_embeds = self._model_times(samples, kept)
        times = SampleTimes(
            source="measured",
            precompute_s=done.wall_s / done.stored,
            pruned_s=pruned,
            unpruned_s=unpruned,
            known_s=known,
            embeds_s=from_embeds,
            token_s=self._token_time(kept),
            load_s=self.load_s,
            cpu_s=done.cpu_s / done.stored,
        )
        sizes, restore = [], {}
        for name, codec in codecs.items():
            on_step(f"codec {name}")
            size, restore[name] = self._codec(name, codec, samples)
            sizes.append(size)
        return Measurement(times, done.tar_bytes / done.stored, done.shares, tuple(sizes), restore)

    def _run_job(self, corpus: DrawnCorpus, seconds: float) -> JobPass:
        """Run passes until the time is over, at least two. The first one warms up; the median of the others counts."""
        items = [item for run in corpus.runs for item in run]
        wall: list[float] = []
        cpu: list[float] = []
        with tempfile.TemporaryDirectory(prefix="trio-ray-estimate-") as folder:
            while len(wall) < 2 or sum(wall) < seconds:
                began, began_cpu = time.perf_counter(), time.process_time()
                tar_bytes, stored, shares = self._pass(items, corpus, str(Path(folder) / str(len(wall))))
                wall.append(time.perf_counter() - began)
                cpu.append(time.process_time() - began_cpu)
        return JobPass(median(wall[1:]), median(cpu[1:]), tar_bytes, stored, shares)

    def _pass(self, items: Sequence[Item], corpus: DrawnCorpus, output: str) -> tuple[int, int, PartShares]:
        store = open_store(output, self.config.s3)
        dataset = Dataset({}, SAMPLE_HASH, max(1, len(items)), utc_now(), package_version(), SCHEMA_VERSION)
        pipeline, cpus = self.config.pipeline, cpus_to_count_on(self.config.replicas)
        runner = ShardRunner(
            stage=self._stage(),
            config=self.config,
            store=store,
            dataset=dataset,
            opener=StoreOpener(self.config.s3),
            decode_threads=pipeline.decoders(cpus),
            open_sink=partial(ShardWriter, StoringSpec.of(self.config, dataset, self.codec, "estimate", cpus), store),
        )
        numbered = [replace(item, index=index) for index, item in enumerate(items)]
        reports = [report for report in runner.run_items(numbered, corpus.shards[0]) if isinstance(report, PartReport)]
        stored = sum(report.stored for report in reports)
        if not stored:
            raise ConfigError("model", "none of the drawn samples fits into the memory of this machine's device")
        (commit,) = read_commits(store, 1)
        return sum(report.bytes for report in reports), stored, part_shares(store, commit)

    def _stage(self) -> ModelStage:
        return ModelStage(
            self.replica, self.method, self.codec, self.config.cache,
            self.config.pipeline.batch_rows,
        )  # fmt: skip

    def _model_times(self, samples: Sequence[PreparedSample], prefixes: Sequence[Prefix]) -> tuple[float, ...]:
        """Seconds a sample: pruned, unpruned, with known tokens, from embeddings."""
        replica, cache = self.replica, self.config.cache
        whole = Method.unpruned(replica.decoder.depth)
        kept = {sample.key: [points.tolist() for points in p.kept] for sample, p in zip(samples, prefixes, strict=True)}
        embeds: dict[str, Embeds] = {}
        for batch in self._batches(samples):
            made = replica.prefill(batch, self.method).embeds
            embeds |= dict(zip((sample.key for sample in batch), made.split(), strict=True))

        def with_known(batch: list[PreparedSample]) -> object:
            known = [kept[sample.key] for sample in batch]
            return replica.prefill(batch, self.method, scope=cache.scope, top_k=cache.top_k, known=known).prefixes

        return tuple(
            self._time(samples, work)
            for work in (
                lambda batch: replica.prefill(batch, self.method).batch,
                lambda batch: replica.prefill(batch, whole).batch,
                with_known,
                lambda batch: replica.prefill_embeds(
                    [embeds[sample.key] for sample in batch], positions=self.method.positions
                ),
            )
        )

    def _time(self, samples: Sequence[PreparedSample], work: Callable[[list[PreparedSample]], object]) -> float:
        """Seconds a sample; a pass without the clock comes first."""

        for batch in self._batches(as_of_new_images(samples, -1)):
            work(batch)
        passes = []
        for number in range(PASSES):
            batches = list(self._batches(as_of_new_images(samples, number)))
            passes.append(measure(self.replica.device, partial(_do_all, work, batches)).seconds)
        return min(passes) / len(samples)

    def _codec(self, name: str, codec: Codec, samples: Sequence[PreparedSample]) -> tuple[MemberSize, float]:
        """The size after compressing, and the seconds from a container's bytes back to keys and values."""
        cache, sizes, seconds = self.config.cache, [], 0.0
        for batch in self._batches(samples):
            prefixes = self.replica.prefill(batch, self.method, scope=cache.scope, top_k=cache.top_k).batch
            coded = code_batch(prefixes, codec).on_host(new_memory)
            if self.replica.device.type == "cuda":
                torch.cuda.synchronize(self.replica.device)
            parts = coded.split()
            sizes += [encoded_size(name, [part], codec, [s.key]) for part, s in zip(parts, batch, strict=True)]
            items = [
                (s.key, write_container(p, codec.settings, s.key, SAMPLE_HASH))
                for p, s in zip(parts, batch, strict=True)
            ]
            restore = partial(read_containers, items, codec, device=self.replica.device)
            restore()
            seconds += min(measure(self.replica.device, restore).seconds for _ in range(PASSES))
        factor = fmean(size.zstd_factor for size in sizes)
        size = MemberSize("kv", name, fmean(size.bytes for size in sizes), factor, "encoded")
        return size, seconds / len(samples)

    def _token_time(self, prefixes: Sequence[Prefix]) -> float:
        """Seconds of a token, all samples decoding together. Each prefix has its first token already."""
        generate = partial(generate_tokens, self.replica.decoder, prefixes, 1 + TIMED_TOKENS)
        generate()
        return measure(self.replica.device, generate).seconds / (TIMED_TOKENS * len(prefixes))

    def _prefixes(self, samples: Sequence[PreparedSample]) -> list[Prefix]:
        return [
            prefix for batch in self._batches(samples) for prefix in self.replica.prefill(batch, self.method).prefixes
        ]

    def _batches(self, samples: Sequence[PreparedSample]) -> Iterator[list[PreparedSample]]:
        return pack(samples, self.config.pipeline.batch_rows)


def _do_all(work: Callable[[list[PreparedSample]], object], batches: Sequence[list[PreparedSample]]) -> None:
    for batch in batches:
        work(batch)
