"""Reading a cache of pruned prefixes. What downstream code imports; never needs Ray."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import torch

from trio_ray.cache.budget import ByteBudget
from trio_ray.cache.identity import codec_of, known_method_of, schedule_of
from trio_ray.cache.part_tables import PartTables
from trio_ray.cache.ranges import Member, Row, neighbours, read_run, run_bytes
from trio_ray.cache.unreadable import PrefixDamaged, UnreadablePrefix
from trio_ray.config import S3Config
from trio_ray.errors import IdentityMismatch, ObjectDamaged, PrefixError, StoreError
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.container import ContainerError, read_containers
from trio_ray.kv.embeds import Embeds, read_embeds
from trio_ray.kv.prefix import Prefix
from trio_ray.method.schedule import Schedule
from trio_ray.model.known import KnownMethod
from trio_ray.model.loading import model_fingerprint
from trio_ray.ordered import ordered_map
from trio_ray.store.commits import CommitRecord, read_commits
from trio_ray.store.dataset import first_difference, load_dataset
from trio_ray.store.layout import commit_name
from trio_ray.store.opening import open_store
from trio_ray.store.tables import MemberKind, place_columns

THREADS = 16
AHEAD_BYTES = 512 << 20
"""Most stored bytes that are read ahead of the consumer; one larger sample is read alone."""

OnBad = Literal["error", "skip"]

_TABLE_BATCH = 256

log = logging.getLogger(__name__)
T = TypeVar("T")


class UnknownKey(PrefixError):
    """No committed sample has this key."""


class AmbiguousKey(PrefixError):
    """Several shards have a sample of this key; name the shard."""


class UnknownShard(StoreError):
    """Nothing of this shard is committed."""


class OtherLevel(PrefixError):
    """The cache holds something else of its samples than was asked for."""


_INSTEAD = {
    "kv": "take prefix() of it, or precompute with cache.level: embeds",
    "embeds": "take embeds() of it and Replica.prefill_embeds, or precompute with cache.level: kv",
    "indices": "prefill its samples again (Replica.prefill_known), or precompute with another cache.level",
}


@dataclass(frozen=True)
class StoredPrefix:
    """A sample's row of the table (column name -> value) and its prefix, on the CPU."""

    row: Row
    prefix: Prefix


@dataclass(frozen=True)
class StoredBytes:
    """A sample's row and its prefix as it is stored, (bytes,) uint8, already compared with its checksum.

    A tensor, because a data loader's workers hand tensors over in shared memory.
    """

    row: Row
    data: torch.Tensor


class PrunedCache:
    """The committed samples of a cache, by key or as a stream.

    Committed parts alone are seen, as they were when the cache was opened. Every byte is compared with its checksum
    when it is read. Opening reads the commit records, which say how many samples each part has; a part's table is read
    when a row of it is wanted. A cache can be pickled: what was read stays behind, and credentials were never in it.

    Args:
        uri: a local folder or `s3://bucket/prefix`.
        s3: endpoint and profile, where the usual AWS environment does not say.
        shards: see these alone, and read nothing of the others.

    Attributes:
        skipped: what `load_many`, `fetch_many` and `stream` left out so far with `on_bad="skip"`.

    Raises:
        NotACacheError: there is no cache.
        UnknownShard: one of `shards` is not in it.
        StoreError: it cannot be read; `ObjectDamaged` where a record or table is not as written.
    """

    def __init__(self, uri: str, s3: S3Config | None = None, shards: Iterable[str] | None = None) -> None:
        self.uri = uri
        self._s3 = s3 or S3Config()
        self._store = open_store(uri, self._s3)
        self.dataset = load_dataset(self._store)
        wanted = None if shards is None else set(shards)
        self.commits: list[CommitRecord] = read_commits(self._store, THREADS, wanted)
        for commit in self.commits:
            if commit.identity_hash != self.dataset.identity_hash:
                name = self._store.uri_of(commit_name(commit.shard.name, commit.part))
                raise ObjectDamaged(name, "is the record of another cache; restore it from a copy")
        missing = (wanted or set()) - {commit.shard.name for commit in self.commits}
        if missing:
            raise UnknownShard(
                uri, f"nothing is committed of shard {', '.join(sorted(missing))}; see `trio-ray inspect`"
            )
        self.skipped: list[UnreadablePrefix] = []

    def __getstate__(self) -> dict[str, Any]:
        kept = ("uri", "_s3", "_store", "dataset", "commits")
        return {**{name: self.__dict__[name] for name in kept}, "skipped": []}

    def reopened(self) -> PrunedCache:
        """The same committed samples over connections of its own: what a forked process needs."""
        fresh = copy.copy(self)
        fresh._store = open_store(self.uri, self._s3)
        return fresh

    def __len__(self) -> int:
        """Number of stored samples."""
        return sum(commit.stored for commit in self.commits)

    @property
    def schedule(self) -> Schedule:
        """The retention schedule that all prefixes were made with."""
        return schedule_of(self.dataset.identity)

    @property
    def level(self) -> str:
        """What is stored of a sample beside its row: kv, embeds, or nothing (indices)."""
        return self.dataset.identity["cache"]["level"]

    @property
    def method(self) -> KnownMethod:
        """How the prefixes came about but for the selection: what `Replica.prefill_known` is told."""
        return known_method_of(self.dataset.identity)

    @cached_property
    def codec(self) -> Codec | None:
        """How keys and values are stored; None where they are not. Raises `CodecError` where this version does not know
        how.
        """
        return codec_of(self.dataset.identity, self._store)

    @cached_property
    def parts(self) -> PartTables:
        """The tables, part by part."""
        return PartTables(self._store, self.commits, THREADS)

    @cached_property
    def table(self) -> pa.Table:
        """All rows of all parts (schemas/samples.table.json) and their `shard`. For a large cache see `read_table`."""
        return self.read_table()

    @cached_property
    def quarantine(self) -> pa.Table:
        """What could not be stored, and why (schemas/quarantine.table.json), and its `shard`."""
        return self.parts.read("quarantine")

    def read_table(self, columns: Iterable[str] | None = None, shard: str | None = None) -> pa.Table:
        """`table` with the columns that are wanted, of one shard or all. Read anew each time, and not kept.

        Raises:
            ObjectDamaged: a part's table is not as it was committed.
            StoreError: it cannot be read.
        """
        return self.parts.read("samples", columns, shard)

    def keys(self) -> list[str]:
        """Keys of all stored samples, by shard, part and position."""
        return self.read_table(["key"]).column("key").to_pylist()

    def rows_at(self, numbers: Sequence[int], columns: Sequence[str] | None = None) -> list[Row]:
        """The rows of samples by their numbers, from 0, in the order of `keys`; only their parts' tables are read.

        Raises:
            IndexError: there is no such number.
            ObjectDamaged, StoreError: see `read_table`.
        """
        return self.parts.rows(numbers, columns)

    def row(self, key: str, shard: str | None = None) -> dict[str, Any]:
        """A sample's row. A key is unique within its shard; `shard` decides where several have it.

        The first search within a shard reads this shard's tables, the first one without a shard reads all.

        Raises:
            UnknownKey, AmbiguousKey: no such sample, or more than one.
            ObjectDamaged, StoreError: see `read_table`.
        """
        rows = self.rows_at(self.parts.find(key, shard))
        rows = [row for row in rows if row["key"] == key and shard in (None, row["shard"])]
        if not rows:
            raise UnknownKey(key, self.uri, "no committed sample has this key")
        if len(rows) > 1:
            shards = ", ".join(row["shard"] for row in rows)
            raise AmbiguousKey(key, self.uri, f"several shards have it, so name one of {shards}")
        return rows[0]

    def prefix(self, key: str, shard: str | None = None) -> Prefix:
        """A sample's prefix, by one range read.

        Raises:
            UnknownKey, AmbiguousKey: see `row`.
            PrefixError: the stored bytes are not the ones that were written; names key and object.
            StoreError: the object is missing or the store failed.
        """
        return self.load(self.row(key, shard)).prefix

    def load(self, row: Row) -> StoredPrefix:
        """The prefix that a row of `table` describes, by one range read. Raises as `prefix` does."""
        return self.decode(self.fetch(row))

    def fetch(self, row: Row) -> StoredBytes:
        """The stored bytes of the prefix that a row describes, not yet decoded. Raises as `prefix` does."""
        return _as_tensor(row, self._member(row, "kv"))

    def decode(self, stored: StoredBytes, device: torch.device | str = "cpu") -> StoredPrefix:
        """The prefix in fetched bytes; its keys and values are decoded on `device` and stay there.

        Raises:
            PrefixDamaged: it is another sample's or another cache's, or cannot be understood.
        """
        (outcome,) = self.decode_many([stored], device)
        if isinstance(outcome, PrefixDamaged):
            raise outcome
        return outcome

    def decode_many(
        self, stored: Sequence[StoredBytes], device: torch.device | str = "cpu"
    ) -> list[StoredPrefix | PrefixDamaged]:
        """`decode` for many samples with an entry for each: its prefix, or the error that says why there is none.

        They are decoded together, on a GPU with a few copies and kernels for all. Their keys and values are views of
        common tensors, which stay in memory as long as one of them is in use.
        """
        return self._decode_many([(each.row, each.data.numpy().tobytes()) for each in stored], device)

    def embeds(self, key: str, shard: str | None = None) -> Embeds:
        """A sample's retained input embeddings, by one range read; of a cache of level embeds. Raises as `prefix`
        does.
        """
        return self.load_embeds(self.row(key, shard))

    def load_embeds(self, row: dict[str, Any]) -> Embeds:
        """The embeddings that a row of `table` describes, by one range read. Raises as `prefix` does."""
        data = self._member(row, "embeds")
        try:
            return read_embeds(data, key=row["key"], fingerprint=self.dataset.identity_hash)
        except ContainerError as error:
            raise PrefixDamaged(row["key"], self._store.uri_of(row["embeds_object"]), str(error)) from None

    def load_many(self, rows: Iterable[Row], threads: int = THREADS, on_bad: OnBad = "error") -> Iterator[StoredPrefix]:
        """`load` for many rows, in order, with `threads` reads in flight.

        Prefixes that follow each other in one object are read by one request. At most `AHEAD_BYTES` of stored bytes
        are on their way or wait.

        Args:
            rows: as `table` and `rows_at` give them; they may come slowly.
            threads: requests in flight; each thread decodes what it has read.
            on_bad: what happens to a sample that is gone or damaged: the error is raised, behind the samples before it,
                or the sample is left out, with a warning in the log and the error in `skipped`.

        Raises:
            PrefixMissing, PrefixDamaged: with `on_bad="error"`; names key and object.
            OtherLevel: the cache stores no prefixes.
            StoreError: the store failed.
        """
        yield from self._sound(self.outcomes(rows, threads), on_bad)

    def fetch_many(self, rows: Iterable[Row], threads: int = THREADS, on_bad: OnBad = "error") -> Iterator[StoredBytes]:
        """`load_many` without decoding: for `decode` on a device."""
        yield from self._sound(self.coded_outcomes(rows, threads), on_bad)

    def outcomes(
        self, rows: Iterable[Row], threads: int = THREADS
    ) -> Generator[StoredPrefix | UnreadablePrefix, None, None]:
        """`load_many` with an entry for every row: its prefix, or the error that says why there is none."""
        return self._read_ahead(rows, threads, self._decode)

    def coded_outcomes(
        self, rows: Iterable[Row], threads: int = THREADS
    ) -> Generator[StoredBytes | UnreadablePrefix, None, None]:
        """`fetch_many` with an entry for every row."""
        return self._read_ahead(rows, threads, _as_tensor)

    def stream(self, threads: int = THREADS, on_bad: OnBad = "error") -> Iterator[StoredPrefix]:
        """All samples, in the order of `keys`; see `load_many`."""
        numbers = range(len(self))
        batches = (self.rows_at(numbers[at : at + _TABLE_BATCH]) for at in range(0, len(self), _TABLE_BATCH))
        yield from self.load_many((row for rows in batches for row in rows), threads, on_bad)

    def check_model(self, folder: Path, dtype: str) -> None:
        """Refuse a model that did not make this cache; `dtype` is its arithmetic, 'float32' and so on.

        Raises:
            IdentityMismatch: names the first differing field.
        """
        # How the prefixes' matrix products were rounded does not bind those who go on from them.
        made = {name: value for name, value in self.dataset.identity["model"].items() if name != "matmul"}
        difference = first_difference(made, {**model_fingerprint(folder), "dtype": dtype}, "model")
        if difference is not None:
            raise IdentityMismatch(self.uri, *difference)

    def _place(self, row: Row, kind: MemberKind) -> Member:
        name, offset, length, stored = (row[column] for column in place_columns(kind))
        if name is None:
            raise OtherLevel(row["key"], self.uri, f"the cache holds {self.level}, not {kind}: {_INSTEAD[self.level]}")
        return Member(row, name, offset, length, stored)

    def _member(self, row: Row, kind: MemberKind) -> bytes:
        """What is stored beside a row, its checksum compared."""
        (data,) = read_run(self._store, [self._place(row, kind)])
        if isinstance(data, UnreadablePrefix):
            raise data
        return data

    def _decode(self, row: Row, data: bytes) -> StoredPrefix | PrefixDamaged:
        (outcome,) = self._decode_many([(row, data)], "cpu")
        return outcome

    def _decode_many(
        self, items: Sequence[tuple[Row, bytes]], device: torch.device | str
    ) -> list[StoredPrefix | PrefixDamaged]:
        if not items:
            return []
        assert self.codec is not None  # there would be no bytes
        identity = self.dataset.identity_hash
        keyed = [(row["key"], data) for row, data in items]
        outcomes = read_containers(keyed, self.codec, fingerprint=identity, device=device)
        return [
            PrefixDamaged(row["key"], self._store.uri_of(row["kv_object"]), str(outcome))
            if isinstance(outcome, ContainerError)
            else StoredPrefix(row, outcome)
            for (row, _), outcome in zip(items, outcomes, strict=True)
        ]

    def _read_ahead(
        self, rows: Iterable[Row], threads: int, finish: Callable[[Row, bytes], T | PrefixDamaged]
    ) -> Generator[T | UnreadablePrefix, None, None]:
        budget = ByteBudget(AHEAD_BYTES)
        members = (self._place(row, "kv") for row in rows)
        runs = takewhile(lambda run: budget.take(run_bytes(run)), neighbours(members))
        finished = ordered_map(lambda run: self._finish_run(run, finish), runs, threads, lookahead=2 * threads)
        try:
            for size, outcomes in finished:
                yield from outcomes
                budget.give(size)
        finally:
            budget.close()
            finished.close()

    def _finish_run(
        self, run: Sequence[Member], finish: Callable[[Row, bytes], T | PrefixDamaged]
    ) -> tuple[int, list[T | UnreadablePrefix]]:
        """A run's bytes, and what became of its members."""
        outcomes = [
            data if isinstance(data, UnreadablePrefix) else finish(member.row, data)
            for member, data in zip(run, read_run(self._store, run), strict=True)
        ]
        return run_bytes(run), outcomes

    def _sound(self, outcomes: Generator[T | UnreadablePrefix, None, None], on_bad: OnBad) -> Iterator[T]:
        with closing(outcomes):
            for outcome in outcomes:
                if not isinstance(outcome, UnreadablePrefix):
                    yield outcome
                elif on_bad == "error":
                    raise outcome
                else:
                    log.warning("skipped: %s", outcome)
                    self.skipped.append(outcome)


def _as_tensor(row: Row, data: bytes) -> StoredBytes:
    return StoredBytes(row, torch.frombuffer(bytearray(data), dtype=torch.uint8))
