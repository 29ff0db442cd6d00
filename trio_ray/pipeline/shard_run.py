"""One shard through one replica: read, prepare, prefill, encode, commit part by part. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from trio_ray.config import JobConfig
from trio_ray.errors import ObjectMissing
from trio_ray.kv.codec import Codec, codec_named
from trio_ray.kv.container import encode_prefix
from trio_ray.kv.prefix import Prefix
from trio_ray.method.schedule import Schedule
from trio_ray.method.selector import Selector
from trio_ray.method.visionzip import VisionZip
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.ordered import ordered_map
from trio_ray.pipeline.packing import Outcome, pack
from trio_ray.pipeline.rows import sample_row, shard_input
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import BadSample, Opener, Shard
from trio_ray.store.dataset import Dataset
from trio_ray.store.layout import commit_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.parts import PartWriter

BATCHES_IN_FLIGHT = 2
"""Batches that may wait for encoding and upload while the model is at the next one."""


@dataclass(frozen=True)
class PartReport:
    """A part that is done. `stored` and `quarantined` count what this attempt committed: 0 where another had been
    faster.
    """

    shard: str
    part: int
    stored: int
    quarantined: int
    bytes: int
    last: bool


@dataclass(frozen=True)
class PrefilledBatch:
    """Outcomes of a group with the prefixes of the good ones, and the milliseconds that the model took."""

    outcomes: list[Outcome]
    prefixes: list[Prefix]
    milliseconds: float


@dataclass(frozen=True)
class ShardRunner:
    """Runs shards, one after the other, on one replica.

    Attributes:
        replica: the loaded model.
        config: the job.
        schedule: the solved budget.
        selector: which tokens stay.
        zipper: the reduction behind the vision tower, if any.
        store: the cache.
        dataset: its identity and part size.
        opener: reads the input.
        run_id: names this run in the records.
    """

    replica: Replica
    config: JobConfig
    schedule: Schedule
    selector: Selector
    zipper: VisionZip | None
    store: ObjectStore
    dataset: Dataset
    opener: Opener
    run_id: str

    @property
    def codec(self) -> Codec:
        """How keys and values are stored."""
        return codec_named(self.config.cache.codec)

    def run(self, shard: Shard, committed: frozenset[int]) -> Iterator[PartReport]:
        """Process what is not committed yet and yield a report as each part is done.

        Raises:
            StoreError: the input could not be read or the output not be written; committed parts stay.
        """
        done = _CommittedParts(self.store, shard.name, self.dataset.part_samples, committed)
        items = read_shard(shard, self.config.source, self.opener, skip=done.holds)
        settings = self.config.pipeline
        prepare = self.replica.preparer(self.config.source.max_pixels).prepare
        outcomes = ordered_map(prepare, items, settings.decode_threads, settings.lookahead)
        writer = _ShardWriter(self, shard)
        with ThreadPoolExecutor(1) as thread:
            try:
                yield from self._through_model(pack(outcomes, settings.token_budget), writer, thread)
                yield from thread.submit(writer.finish, done.highest).result()
            finally:
                outcomes.close()
                thread.submit(writer.abort).result()

    def _through_model(
        self, batches: Iterable[list[Outcome]], writer: _ShardWriter, thread: ThreadPoolExecutor
    ) -> Iterator[PartReport]:
        """Prefill batch after batch while one thread encodes and uploads those before."""
        writing: list[Future[list[PartReport]]] = []
        for batch in batches:
            writing.append(thread.submit(writer.add, self._prefill(batch)))
            while len(writing) > BATCHES_IN_FLIGHT or (writing and writing[0].done()):
                yield from writing.pop(0).result()
        for future in writing:
            yield from future.result()

    def _prefill(self, outcomes: list[Outcome]) -> PrefilledBatch:
        good = [outcome for outcome in outcomes if isinstance(outcome, PreparedSample)]
        if not good:
            return PrefilledBatch(outcomes, [], 0.0)
        started = time.perf_counter()
        top_k = self.config.cache.top_k
        prefixes = self.replica.prefill(good, self.schedule, self.selector, top_k, on_host=True, zipper=self.zipper)
        return PrefilledBatch(outcomes, prefixes, 1e3 * (time.perf_counter() - started))


class _CommittedParts:
    """Which parts of a shard need no work: asked once for each, when the reader comes to it."""

    def __init__(self, store: ObjectStore, shard: str, part_samples: int, committed: frozenset[int]) -> None:
        self._store = store
        self._shard = shard
        self._part_samples = part_samples
        self._known = dict.fromkeys(committed, True)

    def holds(self, index: int) -> bool:
        """Whether the sample at `index` is in a committed part, maybe one that another run has just committed."""
        part = index // self._part_samples
        if part not in self._known:
            self._known[part] = self._exists(part)
        return self._known[part]

    @property
    def highest(self) -> int:
        """Number of the highest part that was found committed; -1 if none."""
        return max((part for part, committed in self._known.items() if committed), default=-1)

    def _exists(self, part: int) -> bool:
        try:
            self._store.stat(commit_name(self._shard, part))
        except ObjectMissing:
            return False
        return True


class _ShardWriter:
    """Sorts prefilled batches into parts and commits each part when the next one begins. For one thread."""

    def __init__(self, runner: ShardRunner, shard: Shard) -> None:
        self._runner = runner
        self._shard = shard
        self._part = -1
        self._open: PartWriter | None = None
        self._broken = False

    def add(self, batch: PrefilledBatch) -> list[PartReport]:
        """Store a batch; returns the parts that this completes. After a failure nothing more is stored."""
        if self._broken:
            return []  # it waited behind the failure; the part it begins in lacks the samples of the failed batch
        try:
            return self._sort(batch)
        except BaseException:
            self._broken = True
            raise

    def _sort(self, batch: PrefilledBatch) -> list[PartReport]:
        reports = []
        prefixes = iter(batch.prefixes)
        rows = sum(prefix.length for prefix in batch.prefixes)
        for outcome in batch.outcomes:
            part = outcome.index // self._runner.dataset.part_samples
            if self._open is None or part != self._part:
                reports += self._commit(last=False)
                self._begin(part)
            if isinstance(outcome, BadSample):
                self._writer.quarantine(outcome.key, outcome.index, outcome.reason, outcome.detail)
            else:
                prefix = next(prefixes)
                self._store_sample(outcome, prefix, batch.milliseconds * prefix.length / rows)
        return reports

    def finish(self, highest_elsewhere: int) -> list[PartReport]:
        """Commit what is open, at the end of the shard; `highest_elsewhere` is the highest part committed by others,
        or -1.
        """
        if self._open is None and self._part < 0 and highest_elsewhere < 0:
            self._begin(0)  # a shard without samples still gets its record, or every run would read it again
        return self._commit(last=self._part > highest_elsewhere)

    def abort(self) -> None:
        """Throw away what is not committed."""
        if self._open is not None:
            self._open.abort()
            self._open = None

    @property
    def _writer(self) -> PartWriter:
        assert self._open is not None
        return self._open

    def _begin(self, part: int) -> None:
        runner = self._runner
        self._part = part
        self._open = PartWriter(runner.store, runner.dataset, shard_input(self._shard), part, runner.run_id)

    def _commit(self, last: bool) -> list[PartReport]:
        if self._open is None:
            return []
        writer, self._open = self._open, None
        size = writer.kv_bytes
        won = writer.commit(last) is not None
        counts = (writer.stored, writer.quarantined, size) if won else (0, 0, 0)
        return [PartReport(self._shard.name, self._part, *counts, last)]

    def _store_sample(self, sample: PreparedSample, prefix: Prefix, prefill_ms: float) -> None:
        started = time.perf_counter()
        data = encode_prefix(prefix, self._runner.codec, sample.key, self._runner.dataset.identity_hash)
        encode_ms = 1e3 * (time.perf_counter() - started)
        row = sample_row(sample, prefix, self._runner.schedule, self._runner.codec.name, prefill_ms, encode_ms)
        self._writer.add(row, data)
