"""Reading a cache of pruned prefixes. What downstream code imports; never needs Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trio_ray.config import S3Config
from trio_ray.errors import IdentityMismatch, ObjectDamaged, PrefixError
from trio_ray.identity import schedule_of
from trio_ray.kv.container import ContainerError, checksum, decode_prefix
from trio_ray.kv.prefix import Prefix
from trio_ray.method.schedule import Schedule
from trio_ray.model.loading import model_fingerprint
from trio_ray.ordered import ordered_map
from trio_ray.store.commits import CommitRecord, FileRecord, read_commits
from trio_ray.store.dataset import first_difference, load_dataset
from trio_ray.store.layout import FileKind
from trio_ray.store.opening import open_store
from trio_ray.store.tables import QUARANTINE, SAMPLES

THREADS = 16


class UnknownKey(PrefixError):
    """No committed sample has this key."""


class AmbiguousKey(PrefixError):
    """Several shards have a sample of this key; name the shard."""


@dataclass(frozen=True)
class StoredPrefix:
    """A sample's row of the table (column name -> value) and its prefix, on the CPU."""

    row: dict[str, Any]
    prefix: Prefix


class PrunedCache:
    """The committed samples of a cache, by key or as a stream.

    Committed parts alone are seen, as they were when the cache was opened. Every byte is compared with its checksum
    when it is read.

    Args:
        uri: a local folder or `s3://bucket/prefix`.
        s3: endpoint and profile, where the usual AWS environment does not say.

    Raises:
        NotACacheError: there is no cache.
        StoreError: it cannot be read; `ObjectDamaged` where a record or table is not as written.
    """

    def __init__(self, uri: str, s3: S3Config | None = None) -> None:
        self._store = open_store(uri, s3 or S3Config())
        self.uri = uri
        self.dataset = load_dataset(self._store)
        self.commits: list[CommitRecord] = read_commits(self._store, THREADS)

    def __len__(self) -> int:
        """Number of stored samples."""
        return sum(commit.stored for commit in self.commits)

    @property
    def schedule(self) -> Schedule:
        """The retention schedule that all prefixes were made with."""
        return schedule_of(self.dataset.identity)

    @cached_property
    def table(self) -> pa.Table:
        """All rows of all parts (schemas/samples.table.json) and their `shard`."""
        return self._tables("samples", SAMPLES)

    @cached_property
    def quarantine(self) -> pa.Table:
        """What could not be stored, and why (schemas/quarantine.table.json), and its `shard`."""
        return self._tables("quarantine", QUARANTINE)

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for number, key in enumerate(self.table.column("key").to_pylist()):
            places.setdefault(key, []).append(number)
        return places

    def keys(self) -> list[str]:
        """Keys of all stored samples, by shard, part and position."""
        return self.table.column("key").to_pylist()

    def row(self, key: str, shard: str | None = None) -> dict[str, Any]:
        """A sample's row. A key is unique within its shard; `shard` decides where several have it.

        Raises:
            UnknownKey, AmbiguousKey: no such sample, or more than one.
        """
        rows = [self.table.slice(number, 1).to_pylist()[0] for number in self._places.get(key, [])]
        rows = [row for row in rows if shard in (None, row["shard"])]
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

    def load(self, row: dict[str, Any]) -> StoredPrefix:
        """The prefix that a row of `table` describes, by one range read. Raises as `prefix` does."""
        data = self._store.read_range(row["kv_object"], row["kv_offset"], row["kv_length"])
        uri = self._store.uri_of(row["kv_object"])
        if checksum(data) != row["kv_checksum"]:
            raise PrefixError(row["key"], uri, "its bytes are not those that were written (checksum differs)")
        try:
            prefix = decode_prefix(data, key=row["key"], fingerprint=self.dataset.identity_hash)
        except ContainerError as error:
            raise PrefixError(row["key"], uri, str(error)) from None
        return StoredPrefix(row, prefix)

    def load_many(self, rows: Iterable[dict[str, Any]], threads: int = THREADS) -> Iterator[StoredPrefix]:
        """`load` for many rows, in order, with `threads` range reads in flight."""
        yield from ordered_map(self.load, rows, threads, lookahead=2 * threads)

    def stream(self, threads: int = THREADS) -> Iterator[StoredPrefix]:
        """All samples, in the order of `keys`."""
        for batch in self.table.to_batches(max_chunksize=256):
            yield from self.load_many(batch.to_pylist(), threads)

    def check_model(self, folder: Path, dtype: str) -> None:
        """Refuse a model that did not make this cache; `dtype` is its arithmetic, 'float32' and so on.

        Raises:
            IdentityMismatch: names the first differing field.
        """
        mine = {**model_fingerprint(folder), "dtype": dtype}
        difference = first_difference(self.dataset.identity["model"], mine, "model")
        if difference is not None:
            raise IdentityMismatch(self.uri, *difference)

    def _tables(self, kind: FileKind, schema: pa.Schema) -> pa.Table:
        commits = [commit for commit in self.commits if kind in commit.files]
        with ThreadPoolExecutor(THREADS) as pool:
            tables = list(pool.map(lambda commit: self._read_table(commit, commit.files[kind]), commits))
        plain = pa.schema([*schema, pa.field("shard", pa.string())])
        return pa.concat_tables([table.cast(plain) for table in tables]) if tables else plain.empty_table()

    def _read_table(self, commit: CommitRecord, file: FileRecord) -> pa.Table:
        data = self._store.read(file.name)
        if checksum(data) != file.checksum:
            raise ObjectDamaged(self._store.uri_of(file.name), "its bytes are not those that were committed")
        table = pq.read_table(pa.BufferReader(data)).replace_schema_metadata(None)
        return table.append_column("shard", pa.array([commit.shard.name] * len(table), pa.string()))
