"""From batches in host memory to committed parts: containers, tar, table, commit record. Needs neither model nor GPU.

`ShardWriter` does it where it is called; `storing` does it in a process of its own.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from trio_ray.config import JobConfig, S3Config
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.codecs.spec import CodecSpec
from trio_ray.kv.container import write_container
from trio_ray.kv.embeds import write_embeds
from trio_ray.ordered import ordered_map
from trio_ray.precompute.host_batch import HostBatch, Placed
from trio_ray.precompute.rows import not_finite, sample_row, shard_input
from trio_ray.source.sample import SHARD_REASONS, BadSample, Shard
from trio_ray.store.dataset import Dataset, utc_now
from trio_ray.store.objects import BytesLike, ObjectStore
from trio_ray.store.parts import PartWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartReport:
    """A part that is done. `stored` and `reasons`, of bad samples, count what this attempt committed: nothing where
    another had been faster. `device_ms` is the time that the device took for its samples, `passed_over` the number
    of those that the user does not want (`source.text_only: skip`). `without_targets` counts stored samples that have
    an answer, but no targets although the cache stores them.
    """

    shard: str
    part: int
    stored: int
    reasons: Mapping[str, int]
    bytes: int
    last: bool
    device_ms: float
    passed_over: int = 0
    without_targets: int = 0

    @property
    def quarantined(self) -> int:
        """Bad samples."""
        return sum(self.reasons.values())

    @property
    def samples(self) -> int:
        """All samples that this attempt committed."""
        return self.stored + self.quarantined + self.passed_over

    @property
    def committed(self) -> bool:
        """Whether this attempt has committed the part, with samples in it."""
        return bool(self.stored + self.quarantined)


@dataclass(frozen=True)
class StoringSpec:
    """All that storing needs to know; small, and free of credentials.

    Attributes:
        output: URI of the cache.
        s3: how its store is reached.
        dataset: its identity and part size.
        codec: settings of the codec; None where keys and values are not stored.
        run_id: names this run in the records.
        threads: that make containers.
        replica: names the device that computes the samples, by its host; None stands for this process.
    """

    output: str
    s3: S3Config
    dataset: Dataset
    codec: CodecSpec | None
    run_id: str
    threads: int
    replica: str | None = None

    @classmethod
    def of(
        cls,
        config: JobConfig,
        dataset: Dataset,
        codec: Codec | None,
        run_id: str,
        cpus: int,
        replica: str | None = None,
    ) -> StoringSpec:
        """For a replica of the job that may count on so many CPUs."""
        settings = codec.settings if codec else None
        return cls(config.output, config.s3, dataset, settings, run_id, config.pipeline.encoders(cpus), replica)


class ShardSink(Protocol):
    """Where a shard's batches go. For one thread; ended by `finish` or `abort`."""

    def add(self, batch: HostBatch) -> list[PartReport]:
        """Store a batch; returns the parts that this completes. After a failure nothing more is stored.

        Raises:
            StoreError: the output could not be written.
        """
        ...

    def finish(self, highest_elsewhere: int) -> list[PartReport]:
        """Commit what is open, at the end of the shard; `highest_elsewhere` is the highest part committed by others,
        or -1. Raises what `add` raises.
        """
        ...

    def abort(self) -> None:
        """Throw away what is not committed. Does nothing behind `finish`, and never raises."""
        ...


PARTS_FINISHING = 2
"""Parts that may wait for their last bytes to arrive and their commit while the next one is being filled."""


class ShardWriter:
    """Sorts batches into parts; a part is committed, in a thread and one after the other, while the next one is being
    filled. A `ShardSink`.
    """

    def __init__(self, spec: StoringSpec, store: ObjectStore, shard: Shard) -> None:
        self._spec = spec
        self._store = store
        self._shard = shard
        self._part = -1
        self._open: PartWriter | None = None
        self._broken = False
        self._device_ms = 0.0
        self._passed = 0
        self._without_targets = 0
        cache = spec.dataset.identity.get("cache") or {}
        self._wants_targets = cache.get("targets", "none") != "none"
        self._since = utc_now()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._finishing: deque[Future[PartReport]] = deque()
        self._done: list[PartReport] = []

    def add(self, batch: HostBatch) -> list[PartReport]:
        """See `ShardSink`."""
        if self._broken:
            return []  # it waited behind the failure; the part it begins in lacks the samples of the failed batch
        try:
            self._sort(batch)
            return self._reports()
        except BaseException:
            self._broken = True
            raise

    def _sort(self, batch: HostBatch) -> None:
        threads = self._spec.threads
        contained = ordered_map(self._contain, iter(batch), threads, lookahead=2 * threads)
        with closing(contained):
            for index, outcome in contained:
                part = index // self._spec.dataset.part_samples
                if self._open is None or part != self._part:
                    self._commit(last=False)
                    self._begin(part)
                if isinstance(outcome, BadSample) and outcome.silent:
                    self._passed += 1
                elif isinstance(outcome, BadSample):
                    if outcome.reason in SHARD_REASONS:
                        self._writer.damage = f"{outcome.reason}: {outcome.detail}"
                    self._writer.quarantine(outcome.key, outcome.index, outcome.reason, outcome.detail)
                else:
                    row, data = outcome
                    self._writer.add(row, data, kind="kv" if self._spec.codec else "embeds")
                    self._device_ms += row["prefill_ms"]
                    untold = row["answer"] is not None and row["answer_ids"] is None
                    self._without_targets += self._wants_targets and untold

    def _contain(self, item: Placed | BadSample) -> tuple[int, tuple[dict[str, Any], BytesLike | None] | BadSample]:
        """A sample's index, with its row and its member of the tar, or why it cannot be stored; runs in threads."""
        return item.index, item if isinstance(item, BadSample) else self._contained(item)

    def _contained(self, placed: Placed) -> tuple[dict[str, Any], BytesLike | None] | BadSample:
        if bad := not_finite(placed.sample, placed.stored):
            return bad
        started = time.perf_counter()
        data = self._member(placed)
        encode_ms = 1e3 * (time.perf_counter() - started)
        codec = self._spec.codec.name if self._spec.codec else None
        return sample_row(placed.sample, placed.stored, codec, placed.milliseconds, encode_ms), data

    def _member(self, placed: Placed) -> BytesLike | None:
        key, fingerprint = placed.sample.key, self._spec.dataset.identity_hash
        if self._spec.codec is not None:
            return write_container(placed.stored.coded, self._spec.codec, key, fingerprint)
        if placed.stored.embeds is not None:
            return write_embeds(placed.stored.embeds, key, fingerprint)
        return None

    def finish(self, highest_elsewhere: int) -> list[PartReport]:
        """See `ShardSink`."""
        if self._open is None and self._part < 0 and highest_elsewhere < 0:
            self._begin(0)  # a shard without samples still gets its record, or every run would read it again
        self._commit(last=self._part > highest_elsewhere)
        self._wait_for_parts(but=0)
        self._thread.shutdown()
        return self._reports()

    def abort(self) -> None:
        """See `ShardSink`."""
        writer, self._open = self._open, None
        try:
            if writer is not None:
                writer.abort()
        except Exception as error:  # its files are garbage, which gc deletes
            log.warning("what was not committed of %s could not be thrown away: %s", self._shard.uri, error)
        self._thread.shutdown()  # a part that is being committed counts, if it still succeeds

    @property
    def _writer(self) -> PartWriter:
        assert self._open is not None
        return self._open

    def _begin(self, part: int) -> None:
        self._part = part
        shard, spec = shard_input(self._shard), self._spec
        self._open = PartWriter(
            self._store, spec.dataset, shard, part, spec.run_id, started=self._since, replica=spec.replica
        )

    def _commit(self, last: bool) -> None:
        if self._open is None:
            return
        writer, self._open = self._open, None
        device_ms, self._device_ms = self._device_ms, 0.0
        passed, self._passed = self._passed, 0
        untold, self._without_targets = self._without_targets, 0
        self._since = utc_now()
        self._finishing.append(
            self._thread.submit(self._finish_part, writer, self._part, last, device_ms, passed, untold)
        )
        self._wait_for_parts(but=PARTS_FINISHING)

    def _finish_part(
        self, writer: PartWriter, part: int, last: bool, device_ms: float, passed: int, untold: int
    ) -> PartReport:
        size, stored, reasons, counted = writer.tar_bytes, 0, dict[str, int](), 0
        if self._broken:
            writer.abort()  # what follows a failure is left to the next attempt, as if the process had died
        else:
            try:
                if writer.commit(last) is not None:
                    stored, reasons, counted = writer.stored, writer.reasons, passed
            except BaseException:
                self._broken = True
                raise
        size, untold = (size, untold) if stored else (0, 0)
        return PartReport(self._shard.name, part, stored, reasons, size, last, device_ms, counted, untold)

    def _wait_for_parts(self, but: int) -> None:
        """Until no more than `but` are left to be finished. Raises what went wrong with one."""
        while len(self._finishing) > but:
            self._done.append(self._finishing.popleft().result())

    def _reports(self) -> list[PartReport]:
        """The reports of parts that are finished, and that no call has returned yet."""
        while self._finishing and self._finishing[0].done():
            self._wait_for_parts(but=len(self._finishing) - 1)
        done, self._done = self._done, []
        return done
