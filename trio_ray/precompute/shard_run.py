"""One shard through one replica: read, prepare, prefill, code, commit part by part. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import takewhile

from trio_ray.config import JobConfig
from trio_ray.errors import ObjectMissing
from trio_ray.model.packing import Outcome, pack
from trio_ray.model.prepare import PreparedSample
from trio_ray.ordered import ordered_map
from trio_ray.precompute.host_batch import HostBatch
from trio_ray.precompute.model_stage import ModelStage, StoredGroup
from trio_ray.precompute.outlook import ShardAdvanced
from trio_ray.precompute.reading_position import ReadingPosition
from trio_ray.precompute.shard_writer import PartReport, ShardSink
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import BadSample, Opener, Sample, Shard
from trio_ray.store.dataset import Dataset
from trio_ray.store.input_version import local_checksum
from trio_ray.store.layout import commit_name
from trio_ray.store.objects import ObjectStore

SHARDS_AT_ONCE = 2
"""Shards on a replica: without the second, its GPU would wait while the first is being stored."""

NEWS_PER_S = 50
"""All replicas together tell so often a second how far they are, and each of them once a second at most."""

BATCHES_IN_FLIGHT = 2
"""Batches that may wait for the host's share of the work while the model is at the next one."""


@dataclass(frozen=True)
class InputRead:
    """All samples of a shard are prepared: the model has work for little longer, and the next shard may begin."""

    shard: str


RunnerNews = PartReport | InputRead | ShardAdvanced
"""What a runner tells of a shard while it is at it."""


@dataclass(frozen=True)
class ShardRunner:
    """Runs shards on one replica; a shard may begin while the one before is still being stored.

    Attributes:
        stage: the replica and its settings.
        config: the job.
        store: the cache.
        dataset: its identity and part size.
        opener: reads the input.
        decode_threads: that prepare samples.
        open_sink: where a shard's batches go.
    """

    stage: ModelStage
    config: JobConfig
    store: ObjectStore
    dataset: Dataset
    opener: Opener
    decode_threads: int
    open_sink: Callable[[Shard], ShardSink]

    def run(self, shard: Shard, committed: frozenset[int], limit: int | None = None) -> Iterator[RunnerNews]:
        """Process what is not committed yet and yield a report as each part is done, and how far it is now and then.

        Args:
            shard: to process.
            committed: its parts that need no work.
            limit: the number of its samples at which a trial takes it for ended.

        Raises:
            StoreError: the input could not be read or the output not be written; committed parts stay.
        """
        shard = replace(shard, checksum=local_checksum(shard.uri, shard.etag))
        done = CommittedParts(self.store, shard.name, self.dataset.part_samples, committed)
        reading = ReadingPosition(shard, self.opener)
        items = reading.followed(read_shard(shard, self.config.source, reading, skip=done.holds))
        if limit is not None:
            items = takewhile(lambda item: item.index < limit, items)
        yield from self.run_items(items, shard, lambda: done.highest, lambda: reading.share)

    def run_items(
        self,
        items: Iterable[Sample | BadSample],
        shard: Shard,
        highest_elsewhere: Callable[[], int] = lambda: -1,
        share_read: Callable[[], float] = lambda: 0.0,
    ) -> Iterator[RunnerNews]:
        """The same with samples that are read already.

        Args:
            items: of the shard, in order.
            shard: what the parts are called after.
            highest_elsewhere: asked behind the last item: the highest part that others have committed, or -1.
            share_read: asked now and then: the share of the shard's input that has been read.

        Raises:
            StoreError: the output could not be written, or an item not be read.
        """
        cache = self.config.cache
        prepare = self.stage.replica.preparer(
            self.config.source.max_pixels,
            cache.selected_under,
            with_answers=cache.targets != "none",
            schedule=self.stage.method.schedule,
        ).prepare
        outcomes = ordered_map(
            prepare,
            items,
            self.decode_threads,
            self.config.pipeline.lookahead,
        )
        sink = self.open_sink(shard)
        thread = ThreadPoolExecutor(1)
        try:
            batches = pack(outcomes, self.stage.token_budget)
            yield from self._through_model(batches, shard, sink, thread, share_read)
            yield from thread.submit(sink.finish, highest_elsewhere()).result()
        finally:
            outcomes.close()
            thread.shutdown()  # nothing is handed to it here: a collected generator's thread may be gone
            sink.abort()

    def _through_model(
        self,
        batches: Iterator[list[Outcome]],
        shard: Shard,
        sink: ShardSink,
        thread: ThreadPoolExecutor,
        share_read: Callable[[], float],
    ) -> Iterator[RunnerNews]:
        """Prefill batch after batch while one thread stores those before."""
        writing: list[Future[list[PartReport]]] = []
        uncommitted, told = 0, time.monotonic()
        pause = max(1.0, self.config.replicas.max / NEWS_PER_S)
        batch = next(batches, None)
        while batch is not None:
            following = next(batches, None)
            if following is None:
                yield InputRead(shard.name)
            writing.append(thread.submit(self._store_batch, sink, self._model(batch)))
            uncommitted += len(batch)
            while len(writing) > BATCHES_IN_FLIGHT or (writing and writing[0].done()):
                for report in writing.pop(0).result():
                    uncommitted -= report.samples
                    yield report
            if time.monotonic() - told >= pause:
                told = time.monotonic()
                yield ShardAdvanced(shard.name, max(0, uncommitted), share_read())
            batch = following
        for future in writing:
            yield from future.result()

    def _model(self, outcomes: list[Outcome]) -> list[StoredGroup | BadSample]:
        """What is stored of a batch, and its bad samples, among them those that do not fit into the device's memory."""
        bad = [outcome for outcome in outcomes if isinstance(outcome, BadSample)]
        results = self.stage.run([outcome for outcome in outcomes if isinstance(outcome, PreparedSample)])
        return [*results, *bad]

    def _store_batch(self, sink: ShardSink, results: Sequence[StoredGroup | BadSample]) -> list[PartReport]:
        """Wait for a batch to arrive in host memory, and store it."""
        held = list(results)
        try:
            for result in results:
                if isinstance(result, StoredGroup):
                    outcomes = result.arrived()
                    held = [one for one in held if one is not result] + outcomes
            groups = [one for one in held if isinstance(one, StoredGroup)]
            bad = sorted((one for one in held if isinstance(one, BadSample)), key=lambda sample: sample.index)
            return sink.add(HostBatch([group.on_host(self.stage.method.schedule) for group in groups], bad))
        finally:
            for one in held:
                if isinstance(one, StoredGroup):
                    one.release()


class CommittedParts:
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
