"""Shards that jobs gave up: all that are known to a run are one object, so that thousands cost one request to read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trio_ray.errors import ObjectMissing
from trio_ray.store.commits import RunRecord, ShardInput, parse_fields, shard_input_of
from trio_ray.store.dataset import SCHEMA_VERSION
from trio_ray.store.layout import FAILURES, failures_name, is_failures_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.record import dump_record, load_record

WRITE_S = 10.0
"""Seconds between two writes of a run's failures while it works. One that is killed loses the record of younger ones,
not the shards: what is not committed is tried again by the next run anyway.
"""


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """A shard that the job gave up after `attempts` tries; `error` is the last one in a sentence."""

    identity_hash: str
    shard: ShardInput
    attempts: int
    error: str
    run: RunRecord


@dataclass(frozen=True, slots=True)
class FailuresRecord:
    """All shards that a run gave up, and those of runs before that are still missing."""

    schema_version: int
    failures: tuple[FailureRecord, ...]


class FailureLog:
    """The failures that a run records. For one thread.

    Args:
        store: of the cache.
        run_id: of the run.
    """

    def __init__(self, store: ObjectStore, run_id: str) -> None:
        self._store = store
        self._name = failures_name(run_id)
        self._failures: dict[str, FailureRecord] = {}
        self._is_written = True
        self._last_write = float("-inf")

    def add(self, *failures: FailureRecord) -> None:
        """Record failures, each instead of an earlier one of its shard; they are written now, or with later ones.

        Raises:
            StoreError: they could not be written; a later call tries again.
        """
        self._failures |= {failure.shard.name: failure for failure in failures}
        self._is_written = self._is_written and not failures
        if time.monotonic() - self._last_write >= WRITE_S:
            self.write()

    def take_over(self, is_mended: Callable[[FailureRecord], bool]) -> None:
        """Write what is still to be told, that of other runs too, as one object, and delete theirs.

        Args:
            is_mended: whether a failure is not to be told any more.

        Raises:
            ObjectDamaged: a record is not as it was written.
            StoreError: the store failed.
        """
        names = _names(self._store)
        known = _latest([*_read_all(self._store, names), *self._failures.values()])
        self._failures = {name: failure for name, failure in known.items() if not is_mended(failure)}
        self._is_written = False
        self.write()
        self._store.delete_all(name for name in names if name != self._name)

    def write(self) -> None:
        """Write what has not been written. Raises `StoreError`."""
        if self._is_written:
            return
        self._last_write = time.monotonic()
        if self._failures:
            record = FailuresRecord(SCHEMA_VERSION, tuple(self._failures.values()))
            self._store.put(self._name, dump_record(asdict(record)))
        else:
            self._store.delete(self._name)
        self._is_written = True


def read_failures(store: ObjectStore) -> dict[str, FailureRecord]:
    """The last failure of each shard that was given up, by shard. Raises `ObjectDamaged` and `StoreError`."""
    return _latest(_read_all(store, _names(store)))


def read_failures_of(store: ObjectStore, name: str) -> tuple[FailureRecord, ...]:
    """The failures in one object. Raises `ObjectMissing`, `ObjectDamaged` or `StoreError`."""
    uri = store.uri_of(name)
    return parse_fields(_failures_of, load_record(store.read(name), uri), uri).failures


def _names(store: ObjectStore) -> list[str]:
    return [info.name for info in store.list(FAILURES) if is_failures_name(info.name)]


def _read_all(store: ObjectStore, names: list[str]) -> list[FailureRecord]:
    failures: list[FailureRecord] = []
    for name in names:
        with contextlib.suppress(ObjectMissing):  # another run has just taken them over
            failures += read_failures_of(store, name)
    return failures


def _latest(failures: list[FailureRecord]) -> dict[str, FailureRecord]:
    in_order = sorted(failures, key=lambda failure: failure.run.finished)
    return {failure.shard.name: failure for failure in in_order}


def _failures_of(fields: Mapping[str, Any]) -> FailuresRecord:
    failures = tuple(_failure_of(failure) for failure in fields["failures"])
    return FailuresRecord(**{**fields, "failures": failures})


def _failure_of(fields: Mapping[str, Any]) -> FailureRecord:
    return FailureRecord(**{**fields, "shard": shard_input_of(fields["shard"]), "run": RunRecord(**fields["run"])})
