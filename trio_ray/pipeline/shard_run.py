"""One shard through one replica: read, prepare, prefill, code, commit part by part. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from trio_ray.config import JobConfig
from trio_ray.errors import ObjectMissing
from trio_ray.kv.container import write_container
from trio_ray.kv.embeds import write_embeds
from trio_ray.model.prepare import PreparedSample
from trio_ray.ordered import ordered_map
from trio_ray.pipeline.model_stage import ModelStage, StoredGroup, StoredSample
from trio_ray.pipeline.packing import Outcome, pack
from trio_ray.pipeline.rows import sample_row, shard_input
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import BadSample, Opener, Reason, Sample, Shard
from trio_ray.store.dataset import Dataset
from trio_ray.store.layout import commit_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.parts import PartWriter

BATCHES_IN_FLIGHT = 2
"""Batches that may wait for the host's share of the work while the model is at the next one."""


@dataclass(frozen=True)
class InputRead:
    """All samples of a shard are prepared: the model has work for little longer, and the next shard may begin."""

    shard: str


@dataclass(frozen=True)
class PartReport:
    """A part that is done. `stored` and `quarantined` count what this attempt committed: 0 where another had been
    faster. `device_ms` is the time that the device took for its samples.
    """

    shard: str
    part: int
    stored: int
    quarantined: int
    bytes: int
    last: bool
    device_ms: float


@dataclass(frozen=True)
class ModelledBatch:
    """Outcomes of a group, and what is stored of its good ones, in order, as it comes to the host."""

    outcomes: list[Outcome]
    groups: list[StoredGroup]


@dataclass(frozen=True)
class _Placed:
    """A good sample with what is stored of it, and the device's time for it."""

    sample: PreparedSample
    stored: StoredSample
    milliseconds: float


@dataclass(frozen=True)
class ShardRunner:
    """Runs shards on one replica; a shard may begin while the one before is still being stored.

    Attributes:
        stage: the replica and all that it is told.
        config: the job.
        store: the cache.
        dataset: its identity and part size.
        opener: reads the input.
        run_id: names this run in the records.
    """

    stage: ModelStage
    config: JobConfig
    store: ObjectStore
    dataset: Dataset
    opener: Opener
    run_id: str

    def run(self, shard: Shard, committed: frozenset[int]) -> Iterator[PartReport | InputRead]:
        """Process what is not committed yet and yield a report as each part is done.

        Raises:
            StoreError: the input could not be read or the output not be written; committed parts stay.
        """
        done = _CommittedParts(self.store, shard.name, self.dataset.part_samples, committed)
        items = read_shard(shard, self.config.source, self.opener, skip=done.holds)
        yield from self.run_items(items, shard, lambda: done.highest)

    def run_items(
        self, items: Iterable[Sample | BadSample], shard: Shard, highest_elsewhere: Callable[[], int] = lambda: -1
    ) -> Iterator[PartReport | InputRead]:
        """The same with samples that are read already.

        Args:
            items: of the shard, in order.
            shard: what the parts are called after.
            highest_elsewhere: asked behind the last item: the highest part that others have committed, or -1.

        Raises:
            StoreError: the output could not be written, or an item not be read.
        """
        settings = self.config.pipeline
        cache = self.config.cache
        prepare = self.stage.replica.preparer(
            self.config.source.max_pixels, cache.selected_under, with_answers=cache.targets != "none"
        ).prepare
        outcomes = ordered_map(prepare, items, settings.decode_threads, settings.lookahead)
        writer = _ShardWriter(self, shard)
        with ThreadPoolExecutor(1) as thread:
            try:
                batches = pack(outcomes, self.stage.token_budget)
                yield from self._through_model(batches, shard, writer, thread)
                yield from thread.submit(writer.finish, highest_elsewhere()).result()
            finally:
                outcomes.close()
                thread.submit(writer.abort).result()

    def _through_model(
        self, batches: Iterator[list[Outcome]], shard: Shard, writer: _ShardWriter, thread: ThreadPoolExecutor
    ) -> Iterator[PartReport | InputRead]:
        """Prefill batch after batch while one thread stores those before."""
        writing: list[Future[list[PartReport]]] = []
        batch = next(batches, None)
        while batch is not None:
            following = next(batches, None)
            if following is None:
                yield InputRead(shard.name)
            writing.append(thread.submit(writer.add, self._model(batch)))
            while len(writing) > BATCHES_IN_FLIGHT or (writing and writing[0].done()):
                yield from writing.pop(0).result()
            batch = following
        for future in writing:
            yield from future.result()

    def _model(self, outcomes: list[Outcome]) -> ModelledBatch:
        good = [outcome for outcome in outcomes if isinstance(outcome, PreparedSample)]
        groups = self.stage.run(good)
        if None not in groups:
            return ModelledBatch(outcomes, [group for group in groups if group])
        return ModelledBatch(_without_too_large(outcomes, groups), [group for group in groups if group])


def _without_too_large(outcomes: Sequence[Outcome], groups: Sequence[StoredGroup | None]) -> list[Outcome]:
    """The outcomes, with a `BadSample` in the place of each good one that had no room on the device even alone."""
    fits = iter([fit for group in groups for fit in ([True] * len(group.lengths) if group else [False])])
    return [
        outcome
        if isinstance(outcome, BadSample) or next(fits)
        else BadSample(
            outcome.key, outcome.index, Reason.OUT_OF_MEMORY, f"{outcome.rows} rows do not fit into the device's memory"
        )
        for outcome in outcomes
    ]


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
        self._device_ms = 0.0

    def add(self, batch: ModelledBatch) -> list[PartReport]:
        """Store a batch; returns the parts that this completes. After a failure nothing more is stored."""
        if self._broken:
            return []  # it waited behind the failure; the part it begins in lacks the samples of the failed batch
        try:
            return self._sort(batch)
        except BaseException:
            self._broken = True
            raise

    def _sort(self, batch: ModelledBatch) -> list[PartReport]:
        reports = []
        good = [outcome for outcome in batch.outcomes if isinstance(outcome, PreparedSample)]
        threads = self._runner.config.pipeline.encode_threads
        contained = ordered_map(self._contain, _place(good, batch.groups), threads, lookahead=2 * threads)
        with closing(contained):
            for outcome in batch.outcomes:
                part = outcome.index // self._runner.dataset.part_samples
                if self._open is None or part != self._part:
                    reports += self._commit(last=False)
                    self._begin(part)
                if isinstance(outcome, BadSample):
                    self._writer.quarantine(outcome.key, outcome.index, outcome.reason, outcome.detail)
                else:
                    row, data = next(contained)
                    self._writer.add(row, data, kind="kv" if self._runner.stage.codec else "embeds")
                    self._device_ms += row["prefill_ms"]
        return reports

    def _contain(self, placed: _Placed) -> tuple[dict[str, Any], bytes | None]:
        """A sample's row and its member of the tar; runs in threads."""
        started = time.perf_counter()
        data = self._member(placed)
        encode_ms = 1e3 * (time.perf_counter() - started)
        stage = self._runner.stage
        codec = None if stage.codec is None else stage.codec.name
        return sample_row(placed.sample, placed.stored, stage.schedule, codec, placed.milliseconds, encode_ms), data

    def _member(self, placed: _Placed) -> bytes | None:
        key, fingerprint = placed.sample.key, self._runner.dataset.identity_hash
        codec = self._runner.stage.codec
        if codec is not None:
            return write_container(placed.stored.coded, codec, key, fingerprint)
        if placed.stored.embeds is not None:
            return write_embeds(placed.stored.embeds, key, fingerprint)
        return None

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
        size = writer.tar_bytes
        won = writer.commit(last) is not None
        counts = (writer.stored, writer.quarantined, size) if won else (0, 0, 0)
        device_ms, self._device_ms = self._device_ms, 0.0
        return [PartReport(self._shard.name, self._part, *counts, last, device_ms)]


def _place(samples: Sequence[PreparedSample], groups: Sequence[StoredGroup]) -> Iterator[_Placed]:
    """Samples with what is stored of them; waits for each group's copy. A group's time is shared out by rows."""
    waiting = iter(samples)
    for group in groups:
        stored = group.samples()
        per_row = group.milliseconds / sum(item.coded.length for item in stored)
        for item in stored:
            yield _Placed(next(waiting), item, per_row * item.coded.length)
