"""Reading a cache of pruned prefixes. What downstream code imports; never needs Ray."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import torch

from trio_ray.cache.ahead import BATCHES_AT_ONCE, FetchAhead, Finished, RestoreAhead, UnderWay
from trio_ray.cache.arena import Arena, SharedBatchMemory, Stock
from trio_ray.cache.fetched import (
    Fetched,
    OtherProcessReader,
    OwnThreadReader,
    Reader,
    Row,
    StoredBytes,
    ThreadReader,
    Wanted,
    fetch,
)
from trio_ray.cache.identity import codec_of, method_of
from trio_ray.cache.key_lookup import KeyLookup, Place
from trio_ray.cache.notebook import cache_html, sample_html
from trio_ray.cache.part_tables import PartTables, row_by_row
from trio_ray.cache.ranges import Member, coalesce_ranges
from trio_ray.cache.unreadable import PrefixDamaged, UnreadablePrefix
from trio_ray.config import ModelConfig, S3Config
from trio_ray.errors import ConfigError, IdentityMismatch, ObjectDamaged, PrefixError, StoreError
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.container import CHECKSUM_DIFFERS, CheckedContainer, check_containers, checksum
from trio_ray.kv.embeds import Embeds, read_embeds
from trio_ray.kv.header import ContainerError
from trio_ray.kv.prefix import Prefix
from trio_ray.kv.restore import RestoreUnderWay, start_restore
from trio_ray.kv.target import Allocate
from trio_ray.method.method import Method
from trio_ray.model.image_scope import Scope
from trio_ray.model.loading import model_fingerprint, pinned
from trio_ray.store.commit_table import CommitTable, open_commits
from trio_ray.store.dataset import differences, load_dataset
from trio_ray.store.layout import commit_name, is_shard_name
from trio_ray.store.opening import open_store
from trio_ray.store.part_table import quarantine_rows
from trio_ray.store.reader_process import ReaderProcess
from trio_ray.store.tables import MEMBER_KINDS, PLACE_COLUMNS, MemberKind, place_columns

THREADS = 16
BATCH = 32
STREAM_BATCH = 8
TASKS_SHARE = 2
"""A batch is dealt to the threads divided by this: fewer and longer tasks hand Python's lock over less often."""
AHEAD = 3
AHEAD_BYTES = 2 << 30
"""Upper bound on the memory that stored bytes take between the store and the device; one larger sample goes alone."""
BATCH_BYTES = 512 << 20
"""Upper bound on the stored bytes of samples that are restored together; one larger sample goes alone."""

OnBad = Literal["error", "skip"]

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
    "indices": "prefill its samples again (Replica.prefill with known indices), or precompute with another cache.level",
}


@dataclass(frozen=True, repr=False)
class StoredPrefix:
    """A sample's row of the table (column name -> value) and its prefix, on the CPU."""

    row: Row
    prefix: Prefix

    def __repr__(self) -> str:
        rows = "+".join(str(segment.rows) for segment in self.prefix.segments)
        return f"StoredPrefix({self.row['key']!r}: {rows} rows of {self.prefix.length}, {self.prefix.kv_bytes:,} bytes)"

    def _repr_html_(self) -> str:
        """For notebooks: question, answer, and which image tokens each prune point keeps."""
        # A segment begins at each prune point; where nothing is dropped before layer 0, one stands in front of them.
        begins = tuple(segment.first_layer for segment in self.prefix.segments)
        layers = begins[len(begins) - len(self.row["kept"]) :]
        return sample_html(self.row, layers, self.prefix._repr_html_())


class PrunedCache:
    """The committed samples of a cache, by key or as a stream.

    There is one way out: rows, `fetch` (stored bytes), `restore` (keys and values on a device); `prefix`, `restored`
    and `stream` go it. Committed parts alone are seen, as they were when the cache was opened. Every byte is compared
    with its checksum when it is read. Opening reads the root of the catalog, which has the sums over all commit
    records; while a job writes to the cache, the records themselves are listed. The records of parts, which say how
    many samples each has, are read when they are asked for, and of a part's table the few rows around a wanted one. A
    cache can be pickled: what was read stays behind, and credentials were never in it.

    Args:
        uri: a local folder or `s3://bucket/prefix`.
        s3: endpoint and profile, where the usual AWS environment does not say.
        shards: see these alone, and read nothing of the others.

    Attributes:
        skipped: what `stream` left out so far with `on_bad="skip"`.

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
        possible = None if wanted is None else {shard for shard in wanted if is_shard_name(shard)}
        self.commits: CommitTable = open_commits(self._store, THREADS, possible)
        strange = self.commits.first_of_another_cache(self.dataset.identity_hash)
        if strange is not None:
            name = self._store.uri_of(commit_name(strange.shard.name, strange.part))
            raise ObjectDamaged(name, "is the record of another cache; restore it from a copy")
        missing = wanted.difference(self.commits.shards) if wanted else None
        if missing:
            raise UnknownShard(
                uri, f"nothing is committed of shard {', '.join(sorted(missing))}; see `trio-ray inspect`"
            )
        self.skipped: list[UnreadablePrefix] = []
        self._readers: dict[int, tuple[OtherProcessReader, Stock]] = {}

    def __getstate__(self) -> dict[str, Any]:
        kept = ("uri", "_s3", "_store", "dataset", "commits")
        return {**{name: self.__dict__[name] for name in kept}, "skipped": [], "_readers": {}}

    def reopened(self) -> PrunedCache:
        """The same committed samples over connections of its own: what a forked process needs."""
        fresh = copy.copy(self)
        fresh._store = open_store(self.uri, self._s3)
        return fresh

    def __repr__(self) -> str:
        cache = self.dataset.identity.get("cache", {})
        codec = (cache.get("codec") or {}).get("name")
        return (
            f"PrunedCache({self.uri!r}: {len(self):,} samples in {len(self.commits):,} parts of "
            f"{self.commits.totals.shards:,} shards, "
            f"level {cache.get('level')}" + (f", codec {codec})" if codec else ")")
        )

    def _repr_html_(self) -> str:
        """For notebooks: what the cache is, from its commit records."""
        codec = (self.dataset.identity["cache"]["codec"] or {}).get("name", "none")
        facts = {
            "Model": self.dataset.model or "not named",
            "Method": self.dataset.identity["method"]["selector"],
            "Stored": f"level {self.level}, scope {self.scope}, codec {codec}",
        }
        return cache_html(repr(self), self.commits.totals, self.method.schedule, facts)

    def __len__(self) -> int:
        """Number of stored samples."""
        return self.commits.totals.stored

    @property
    def level(self) -> str:
        """What is stored of a sample beside its row: kv, embeds, or nothing (indices)."""
        return self.dataset.identity["cache"]["level"]

    @cached_property
    def method(self) -> Method:
        """The method that all prefixes were made with."""
        return method_of(self.dataset.identity)

    @property
    def scope(self) -> Scope:
        """How far the prefixes go: over the whole prompt, or up to its images' end."""
        return self.dataset.identity["cache"]["scope"]

    @property
    def instruction(self) -> str | None:
        """With scope image, the text under which tokens were selected; else None."""
        return self.dataset.identity["cache"]["instruction"]

    @property
    def top_k(self) -> int:
        """Entries that are stored of the first token's distribution."""
        return self.dataset.identity["cache"]["top_k"]

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
    def _lookup(self) -> KeyLookup:
        return KeyLookup(self._store, self.commits, THREADS)

    @cached_property
    def table(self) -> pa.Table:
        """All rows of all parts (schemas/samples.table.json) and their `shard`. For a large cache see `read_table`."""
        return self.read_table()

    @cached_property
    def quarantine(self) -> pa.Table:
        """What could not be stored, and why (schemas/quarantine.table.json), and its `shard`."""
        return self.parts.read("quarantine")

    def quarantine_rows(self) -> Iterator[dict[str, Any]]:
        """`quarantine` row by row; a part's table is read when its rows come."""
        return quarantine_rows(self._store, self.commits)

    def read_table(self, columns: Iterable[str] | None = None, shard: str | None = None) -> pa.Table:
        """`table` with the columns that are wanted, of one shard or all. Read anew each time, and not kept.

        Raises:
            ObjectDamaged: a part's table is not as it was committed.
            StoreError: it cannot be read.
        """
        return self.parts.read("samples", columns, shard)

    def scan(self, columns: Iterable[str] | None = None, shard: str | None = None) -> Generator[pa.Table, None, None]:
        """`read_table` part by part, in order, so that it takes the same memory for any number of parts."""
        return self.parts.scan("samples", columns, shard)

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
        """A sample's row, by some small reads. A key is unique within its shard; `shard` decides where several have it.

        Raises:
            UnknownKey, AmbiguousKey: no such sample, or more than one.
            ObjectDamaged, StoreError: see `read_table`.
        """
        place = self._place(key, shard)
        (row,) = self.parts.rows_of([place.part], [place.row])
        if row["key"] != key:
            where = self.commits.file(place.part, "samples")
            assert where is not None
            raise ObjectDamaged(self._store.uri_of(where.name), f"row {place.row} is not the one of {key!r}")
        return row

    def locate(self, key: str, shard: str | None = None) -> Row:
        """Key, shard and place columns of a sample's row: all that `fetch` needs, by one small read at most where the
        catalog has the key. Raises as `row` does.
        """
        place = self._place(key, shard)
        row: Row = {"key": key, "shard": self.commits.shard_of(place.part), **dict.fromkeys(PLACE_COLUMNS)}
        tar = self.commits.file(place.part, "tar")
        for kind in MEMBER_KINDS:
            if tar is not None and kind == self.level:
                where = (tar.name, place.offset, place.length, place.checksum)
                row |= dict(zip(place_columns(kind), where, strict=True))
        return row

    def _place(self, key: str, shard: str | None) -> Place:
        places = self._lookup.find(key, shard)
        if not places:
            raise UnknownKey(key, self.uri, "no committed sample has this key")
        if len(places) > 1:
            shards = ", ".join(self.commits.shard_of(place.part) for place in places)
            raise AmbiguousKey(key, self.uri, f"several shards have it, so name one of {shards}")
        return places[0]

    def prefix(self, sample: str | Row, shard: str | None = None, device: torch.device | str = "cpu") -> Prefix:
        """A sample's prefix: by one range read, behind one small one that finds the key.

        Args:
            sample: its key, or its row.
            shard: see `row`.
            device: where its keys and values are wanted.

        Raises:
            UnknownKey, AmbiguousKey: see `row`.
            OtherLevel: the cache stores no prefixes.
            PrefixError: the stored bytes are not the ones that were written; names key and object.
            StoreError: the object is missing or the store failed.
        """
        row = self.locate(sample, shard) if isinstance(sample, str) else sample
        (outcome,) = self.restore(self.fetch([row]), device)
        if isinstance(outcome, UnreadablePrefix):
            raise outcome
        return outcome.prefix

    def embeds(self, sample: str | Row, shard: str | None = None) -> Embeds:
        """A sample's retained input embeddings, by one range read; of a cache of level embeds. See `prefix`."""
        row = self.locate(sample, shard) if isinstance(sample, str) else sample
        (stored,) = fetch(OwnThreadReader(self._store), self._wanted([row], "embeds"))
        if isinstance(stored, UnreadablePrefix):
            raise stored
        try:
            return read_embeds(stored.data.numpy().tobytes(), key=row["key"], fingerprint=self.dataset.identity_hash)
        except ContainerError as error:
            raise PrefixDamaged(row["key"], self._store.uri_of(row["embeds_object"]), str(error)) from None

    def fetch(self, rows: Sequence[Row], threads: int = THREADS) -> Fetched:
        """The stored bytes of a batch of samples, in one buffer and compared with their checksums, not yet restored.

        What lies side by side in an object is read by one request.

        Args:
            rows: as `table` and `rows_at` give them.
            threads: requests in flight.

        Raises:
            OtherLevel: the cache stores no prefixes.
            StoreError: the store failed in another way than for a lost or damaged object.
        """
        wanted = self._wanted(rows)
        if len(wanted.runs) < 2:
            return fetch(OwnThreadReader(self._store), wanted)
        with closing(ThreadReader(self._store, min(threads, len(wanted.runs)), threads)) as reader:
            return fetch(reader, wanted)

    def restore(
        self,
        fetched: Sequence[StoredBytes | UnreadablePrefix],
        device: torch.device | str = "cpu",
        allocate: Allocate | None = None,
    ) -> list[StoredPrefix | UnreadablePrefix]:
        """Stored bytes to keys and values on a device, all samples together: on a GPU a few copies and kernels.

        Args:
            fetched: from `fetch`.
            device: where keys and values are wanted; the small tensors stay on the CPU.
            allocate: says where keys and values of the sound samples are written. Without it they get new tensors,
                common to all samples of the call, which stay in memory as long as one of them is in use.

        Returns:
            For each sample its prefix, or the error that says why there is none: `PrefixDamaged` where the bytes are
            another sample's or another cache's, or cannot be understood.
        """
        return self._start(fetched, torch.device(device), allocate).finish()

    def fetched(
        self, rows: Iterable[Row], batch: int = BATCH, threads: int = THREADS, ahead: int = AHEAD
    ) -> Generator[Fetched, None, None]:
        """`fetch` for many rows, batch by batch and ahead of the consumer, who keeps the memory; see `restored`."""
        reader = self._own_threads(threads)
        with closing(self._fetch_ahead(rows, batch, reader, ahead, lambda fetched: fetched)) as batches:
            for fetched in batches:
                if fetched.block is not None:
                    fetched.block.keep()
                yield fetched

    def restored(
        self,
        rows: Iterable[Row],
        device: torch.device | str = "cpu",
        batch: int = BATCH,
        threads: int = THREADS,
        ahead: int = AHEAD,
        allocate: Allocate | None = None,
    ) -> RestoreAhead[list[StoredPrefix | UnreadablePrefix]]:
        """`fetch` and `restore` for many rows: while one batch is restored and used, the next ones are fetched.

        Stored bytes go into memory that is used again, of at most `AHEAD_BYTES`. For a GPU it is pinned, and another
        process reads into it, which leaves Python's lock to the caller's thread. For a GPU, or with `allocate`, batches
        are restored from the caller's thread and on its stream, the next one beside the use of one where it has come by
        then; for a CPU in threads, too.

        Args:
            rows: as `table` and `rows_at` give them; they may come slowly.
            device, allocate: see `restore`. `allocate` is called once for each batch, in order.
            batch: samples restored together; fewer where they take more than `BATCH_BYTES`.
            threads: requests in flight.
            ahead: batches that may wait.

        Returns:
            An iterator of what `restore` returns for each batch of rows, in order; close it. Its `ready` says whether a
            batch is there. It raises:
                OtherLevel: the cache stores no prefixes.
                StoreError: the store failed in another way than for a lost or damaged object.
        """
        device = torch.device(device)
        on_gpu = device.type == "cuda"

        def start(fetched: Fetched) -> UnderWay[list[StoredPrefix | UnreadablePrefix]]:
            begun = self._start(fetched, device, allocate)
            assert fetched.block is not None
            fetched.block.release(torch.cuda.current_stream(device).record_event() if on_gpu else None)
            return begun

        if on_gpu:
            process, stock = self._other_process(threads)
            return RestoreAhead(self._fetch_ahead(rows, batch, process, ahead, lambda fetched: fetched, stock), start)
        reader = self._own_threads(threads)
        if allocate is not None:
            return RestoreAhead(self._fetch_ahead(rows, batch, reader, ahead, lambda fetched: fetched), start)
        in_thread = self._fetch_ahead(rows, batch, reader, ahead, lambda fetched: start(fetched).finish())
        return RestoreAhead(in_thread, Finished)

    def prepare_pinned_memory(self, threads: int = THREADS, batch: int = BATCH) -> None:
        """Make the memory that `restored` reads into for a GPU, for batches of this cache's mean size.

        Half a GB takes a third of a second. Call this in a thread while the model is loaded, and not beside `restored`,
        which makes memory as it is needed.

        Args:
            threads, batch: as `restored` will be given them.

        Raises:
            MemoryError, OSError: there is not so much memory, or the driver does not pin it.
        """
        totals = self.commits.totals
        if totals.stored:
            size = min(BATCH_BYTES, totals.member_bytes * batch // totals.stored)
            _, stock = self._other_process(threads)
            stock.fill(size, min(-(-totals.stored // batch), BATCHES_AT_ONCE + AHEAD + 1))

    def stream(
        self,
        rows: Iterable[Row] | None = None,
        device: torch.device | str = "cpu",
        on_bad: OnBad = "error",
        threads: int = THREADS,
    ) -> Generator[StoredPrefix, None, None]:
        """Samples one by one, in order; all of the cache's if no rows are given. See `restored`.

        Args:
            rows, device, threads: see `restored`.
            on_bad: what happens to a sample that is gone or damaged: the error is raised, behind the samples before it,
                or the sample is left out, with a warning in the log and the error in `skipped`.

        Raises:
            PrefixMissing, PrefixDamaged: with `on_bad="error"`; names key and object.
            OtherLevel, StoreError: see `restored`.
        """
        with closing(self.restored(self._all_rows() if rows is None else rows, device, STREAM_BATCH, threads)) as each:
            for outcome in chain.from_iterable(each):
                if not isinstance(outcome, UnreadablePrefix):
                    yield outcome
                elif on_bad == "error":
                    raise outcome
                else:
                    log.warning("skipped: %s", outcome)
                    self.skipped.append(outcome)

    def model_that_made_it(self, given: ModelConfig) -> ModelConfig:
        """What to load to go on from the prefixes: the model of the settings or, where they name none, the one that
        `dataset.json` names, by its commit if it is a hub model.

        A model that the settings name without a revision is taken by that commit too, if it has the same name.

        Args:
            given: the settings. `dtype: auto` becomes the arithmetic that made the cache.

        Raises:
            ConfigError: neither names a model, or there is no such model; names `model.name` or `model.revision`.
        """
        made = self.dataset
        dtype = made.identity["model"]["dtype"] if given.dtype == "auto" else given.dtype
        named = "name" in given.model_fields_set
        if not named and not made.model_name:
            raise ConfigError("model.name", f"{self.uri} does not name the model that made it; give one")
        name = given.name if named else made.model_name
        revision = given.revision or (made.model_commit if name == made.model_name else None)
        wanted = given.model_copy(update={"name": name, "revision": revision, "dtype": dtype})
        try:
            return pinned(wanted)
        except ConfigError as error:
            if named:
                raise
            told = str(error).removeprefix(f"{error.field}: ")
            raise ConfigError(error.field, f"{self.uri} was made with {made.model}: {told}; give the model") from None

    def check_model(self, folder: Path, dtype: str) -> None:
        """Refuse a model that did not make this cache; `dtype` is its arithmetic, 'float32' and so on.

        Raises:
            IdentityMismatch: names what differs.
        """
        # How the prefixes' matrix products were rounded does not bind those who go on from them.
        made = {name: value for name, value in self.dataset.identity["model"].items() if name != "matmul"}
        found = list(differences(made, {**model_fingerprint(folder), "dtype": dtype}, "model"))
        if found:
            raise IdentityMismatch(self.uri, found, reading=True)

    def _all_rows(self) -> Iterator[Row]:
        with closing(self.scan()) as tables:
            yield from row_by_row(tables)

    def _wanted(self, rows: Sequence[Row], kind: MemberKind = "kv") -> Wanted:
        """The requests that the members of these rows take."""
        return Wanted(rows, *coalesce_ranges(self._member(number, row, kind) for number, row in enumerate(rows)))

    def _member(self, number: int, row: Row, kind: MemberKind) -> Member:
        name, offset, length, checksum = (row[column] for column in place_columns(kind))
        if name is None:
            raise OtherLevel(row["key"], self.uri, f"the cache holds {self.level}, not {kind}: {_INSTEAD[self.level]}")
        return Member(number, row["key"], name, offset, length, checksum)

    def _start(
        self, fetched: Sequence[StoredBytes | UnreadablePrefix], device: torch.device, allocate: Allocate | None
    ) -> _Restoring:
        """Compare headers and small tensors, and begin to restore what is sound.

        All in one thread: both are Python's work, and torch gives Python's lock away at every call. Two threads at it
        take twice as long as one. What can run in parallel is done by `fetch`, or on the device.
        """
        stored = [sample for sample in fetched if isinstance(sample, StoredBytes)]
        assert self.codec is not None  # there would be no bytes
        items = [(sample.row["key"], sample.data) for sample in stored]
        outcomes = check_containers(items, self.codec, self.dataset.identity_hash)
        sound: list[CheckedContainer] = []
        checksums: list[str | None] = []
        for number, (sample, outcome) in enumerate(zip(stored, outcomes, strict=True)):
            if isinstance(outcome, CheckedContainer):
                sound.append(outcome)
                checksums.append(sample.checksum)
            elif sample.checksum is not None and checksum(sample.data.numpy().data) != sample.checksum:
                outcomes[number] = ContainerError(CHECKSUM_DIFFERS)
        return _Restoring(self, fetched, outcomes, start_restore(sound, self.codec, device, allocate, checksums))

    def _damaged(self, row: Row, error: ContainerError) -> PrefixDamaged:
        return PrefixDamaged(row["key"], self._store.uri_of(row["kv_object"]), str(error))

    def _own_threads(self, threads: int) -> ThreadReader:
        return ThreadReader(self._store, threads, -(-threads // TASKS_SHARE))

    def _other_process(self, threads: int) -> tuple[OtherProcessReader, Stock]:
        """A process that reads with so many threads, the same one at every call, and memory that it reads into."""
        process = ReaderProcess(self.uri, self._s3, threads, BATCHES_AT_ONCE)  # which its first request starts
        made = OtherProcessReader(process), Stock(AHEAD_BYTES, SharedBatchMemory.of_size)
        return self._readers.setdefault(threads, made)

    def _fetch_ahead(
        self,
        rows: Iterable[Row],
        batch: int,
        reader: Reader,
        ahead: int,
        prepare: Callable[[Fetched], T],
        stock: Stock | None = None,
    ) -> FetchAhead[T]:
        """Batches of rows fetched and prepared in threads, in order, while the consumer works."""
        wanted = map(self._wanted, _batches(rows, batch))
        return FetchAhead(reader, wanted, prepare, ahead, Arena(stock or Stock(AHEAD_BYTES)))


@dataclass(frozen=True)
class _Restoring:
    """A batch whose sound containers a device is restoring.

    Attributes:
        cache: that it is of.
        fetched: the batch.
        checked: in order the sound containers of it, or what is wrong with one; nothing for a sample that could not be
            fetched.
        under_way: of the sound ones.
    """

    cache: PrunedCache
    fetched: Sequence[StoredBytes | UnreadablePrefix]
    checked: Sequence[CheckedContainer | ContainerError]
    under_way: RestoreUnderWay

    def is_done(self) -> bool:
        return self.under_way.is_done()

    def finish(self) -> list[StoredPrefix | UnreadablePrefix]:
        """For each sample its prefix, or the error of fetching, checking or restoring it."""
        restored, checked = iter(self.under_way.finish()), iter(self.checked)
        outcomes: list[StoredPrefix | UnreadablePrefix] = []
        for sample in self.fetched:
            if isinstance(sample, UnreadablePrefix):
                outcomes.append(sample)
                continue
            outcome = next(checked)
            prefix = next(restored) if isinstance(outcome, CheckedContainer) else outcome
            if isinstance(prefix, ContainerError):
                outcomes.append(self.cache._damaged(sample.row, prefix))
            else:
                outcomes.append(StoredPrefix(sample.row, prefix))
        return outcomes


def _batches(rows: Iterable[Row], batch: int) -> Iterator[list[Row]]:
    """Neighbouring rows, at most `batch` of them and, unless one alone takes more, `BATCH_BYTES` of stored bytes."""
    taken: list[Row] = []
    size = 0
    for row in rows:
        own = row["kv_length"] or 0
        if taken and (len(taken) == batch or size + own > BATCH_BYTES):
            yield taken
            taken, size = [], 0
        taken.append(row)
        size += own
    if taken:
        yield taken
