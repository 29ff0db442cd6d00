"""Writing one part: members stream into a tar, rows gather in memory, one commit record makes all of it count."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from trio_ray.errors import StoreError
from trio_ray.store.commits import (
    CommitRecord,
    FileRecord,
    FooterRecord,
    PartStatistics,
    RunRecord,
    ShardInput,
    create_commit,
)
from trio_ray.store.dataset import SCHEMA_VERSION, Dataset, package_version, utc_now
from trio_ray.store.hashing import HashingWriter
from trio_ray.store.layout import FileKind, data_name
from trio_ray.store.locators import locators_of
from trio_ray.store.objects import BytesLike, ObjectStore
from trio_ray.store.row_groups import write_row_groups
from trio_ray.store.tables import (
    LENGTH_COLUMNS,
    PLACE_COLUMNS,
    QUARANTINE,
    SAMPLES,
    MemberKind,
    column_faults,
    place_columns,
    stamped,
)
from trio_ray.store.tar_members import END, member_header, padding


class PartWriter:
    """One attempt at one part. Any number of attempts may race; exactly one `commit` of them wins.

    For one thread. End it with `commit` or `abort`; a process that dies before either leaves nothing a reader
    sees.

    Args:
        attempt: letters and digits, unique to this attempt; made up if not given.
        started: when work on its samples began (`utc_now`); now if not given.
        replica: names the device that computed the samples, by its host; this process if not given.

    Attributes:
        damage: what is wrong with the shard's file, for the record of the part that it ends with.
    """

    def __init__(
        self,
        store: ObjectStore,
        dataset: Dataset,
        shard: ShardInput,
        part: int,
        run_id: str,
        attempt: str | None = None,
        started: str | None = None,
        replica: str | None = None,
    ) -> None:
        self._store = store
        self._dataset = dataset
        self._shard = shard
        self._part = part
        self._run_id = run_id
        self.attempt = attempt or uuid.uuid4().hex
        self._started = started or utc_now()
        self._replica = replica or f"{socket.gethostname()} process {os.getpid()}"
        self._rows: list[dict[str, Any]] = []
        self._bad: list[dict[str, Any]] = []
        self._tar: HashingWriter | None = None
        self._visible: list[str] = []
        self.damage: str | None = None

    @property
    def stored(self) -> int:
        """Samples added so far."""
        return len(self._rows)

    @property
    def quarantined(self) -> int:
        """Samples put into quarantine so far."""
        return len(self._bad)

    @property
    def reasons(self) -> dict[str, int]:
        """Of the samples put into quarantine so far, how many for each reason."""
        return dict(Counter(str(row["reason"]) for row in self._bad))

    @property
    def tar_bytes(self) -> int:
        """Bytes of the tar so far."""
        return self._tar.size if self._tar else 0

    def add(self, row: Mapping[str, Any], data: BytesLike | None, kind: MemberKind = "kv") -> None:
        """Append a sample: its row (`SAMPLES` without the columns that place members) and what is stored beside it.

        Args:
            row: all columns but `PLACE_COLUMNS`.
            data: the sample's member of the tar; None stores the row alone.
            kind: what it is.

        Raises:
            ValueError: the row lacks a column or has an unknown one.
            StoreError: the upload failed; `abort` and try the part again.
        """
        faults = column_faults(row)
        if faults:
            raise ValueError(f"row of sample {row.get('key')!r} {faults}")
        places: dict[str, Any] = dict.fromkeys(PLACE_COLUMNS)
        if data is not None:
            place = self._append(row["key"], kind, data)
            places |= dict(zip(place_columns(kind), (*place, xxhash.xxh3_128_hexdigest(data)), strict=True))
        self._rows.append({**row, **places})

    def _append(self, key: str, kind: MemberKind, data: BytesLike) -> tuple[str, int, int]:
        """Write a member; returns the tar's name, the member's first byte and its length."""
        name = self._name("tar")
        if self._tar is None:
            self._tar = HashingWriter(self._store.writer(name))
        length = memoryview(data).nbytes
        self._tar.write(member_header(key, kind, length))
        start = self._tar.size
        self._tar.write(data)
        self._tar.write(bytes(padding(length)))
        return name, start, length

    def quarantine(self, key: str, index: int, reason: str, detail: str) -> None:
        """Note a sample that cannot be stored, and why."""
        uri = self._shard.uri
        self._bad.append({"key": key, "index": index, "reason": reason, "detail": detail, "shard_uri": uri})

    def commit(self, last: bool) -> CommitRecord | None:
        """Finish the files and make the part count; `last` says that the shard ends with it.

        Returns:
            The record, or None if another attempt had committed this part: then this one's files are deleted.

        Raises:
            StoreError: nothing was committed, or the answer to the commit itself was lost. The same part may
                be tried again in either case: if this commit did count, the next attempt loses against it.
        """
        try:
            files, footer = self._finish_files()
        except BaseException:
            self.abort()
            raise
        record = CommitRecord(
            schema_version=SCHEMA_VERSION,
            identity_hash=self._dataset.identity_hash,
            shard=self._shard,
            part=self._part,
            attempt=self.attempt,
            last=last,
            stored=self.stored,
            quarantined=self.quarantined,
            statistics=self._statistics(),
            files=files,
            footer=footer,
            run=RunRecord(self._run_id, socket.gethostname(), self._started, utc_now(), package_version()),
            replica=self._replica,
            damage=self.damage,
        )
        # From here on the files must stay if `create_commit` raises: the record may be there although we were
        # not told.
        visible, self._visible = self._visible, []
        if create_commit(self._store, record):
            return record
        self._visible = visible
        self.abort()
        return None

    def abort(self) -> None:
        """Throw this attempt away, its files included (`gc` finds what cannot be deleted now).

        Never raises.
        """
        if self._tar is not None:
            self._tar.writer.abort()
        for name in self._visible:
            with contextlib.suppress(StoreError):
                self._store.delete(name)
        self._visible = []

    def _statistics(self) -> PartStatistics:
        return PartStatistics(
            image_tokens=sum(row["image_tokens"] for row in self._rows),
            held_tokens=sum(row["retention"] * row["image_tokens"] for row in self._rows),
            member_bytes=sum(row[column] or 0 for row in self._rows for column in LENGTH_COLUMNS),
            device_s=sum(row["prefill_ms"] for row in self._rows) / 1e3,
            reasons=self.reasons,
        )

    def _finish_files(self) -> tuple[dict[FileKind, FileRecord], FooterRecord]:
        data, footer_bytes = write_row_groups(self._table(SAMPLES, self._rows))
        footer = FooterRecord(footer_bytes, xxhash.xxh3_128_hexdigest(data[-footer_bytes:]))
        files: dict[FileKind, FileRecord] = {"samples": self._put("samples", data)}
        if self._rows:
            files["locators"] = self._put("locators", locators_of(self._rows).tobytes())
        if self._bad:
            sink = pa.BufferOutputStream()
            pq.write_table(self._table(QUARANTINE, self._bad), sink, compression="zstd")
            files["quarantine"] = self._put("quarantine", sink.getvalue().to_pybytes())
        if self._tar is not None:
            self._tar.write(END)
            name = self._name("tar")
            self._visible.append(name)
            self._tar.writer.close()
            files["tar"] = FileRecord(name, self._tar.size, self._tar.checksum)
        return files, footer

    def _table(self, schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
        return pa.Table.from_pylist(rows, stamped(schema, SCHEMA_VERSION, self._dataset.identity_hash))

    def _put(self, kind: FileKind, data: bytes) -> FileRecord:
        name = self._name(kind)
        self._visible.append(name)
        self._store.put(name, data)
        return FileRecord(name, len(data), xxhash.xxh3_128_hexdigest(data))

    def _name(self, kind: FileKind) -> str:
        return data_name(self._shard.name, self._part, self.attempt, kind)
