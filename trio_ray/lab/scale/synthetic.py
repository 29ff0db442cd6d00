"""Caches of any number of parts, made in no time: real records, locators, catalogs and tables; few real bytes of KV.

All parts name one tar, whose members are random bytes of the size of a prefix, with true checksums.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import xxhash

from trio_ray.config import S3Config
from trio_ray.store.catalog_writer import complete_catalog
from trio_ray.store.commit_table import read_commits
from trio_ray.store.commits import (
    CommitRecord,
    FileRecord,
    FooterRecord,
    PartStatistics,
    RunRecord,
    ShardInput,
    create_commit,
)
from trio_ray.store.dataset import SCHEMA_VERSION, Dataset, create_or_check, package_version, utc_now
from trio_ray.store.layout import DATASET, FileKind, data_name
from trio_ray.store.locators import locators_of
from trio_ray.store.objects import ObjectStore
from trio_ray.store.opening import open_store
from trio_ray.store.row_groups import write_row_groups
from trio_ray.store.tables import SAMPLES, place_columns, stamped

IDENTITY: dict[str, Any] = {
    "model": {"name": "made up"},
    "cache": {"level": "kv", "codec": None, "scope": "prompt", "top_k": 5, "instruction": None},
}
PARTS_OF_A_SHARD = 10
THREADS = 16
MEMBERS = 32
"""Different members of the one tar."""

ATTEMPT = "synthetic"
PROMPT = "USER: <image>\nIs there a dog in the image? Please answer yes or no. ASSISTANT:"


def key_of(part: int, row: int) -> str:
    """The key of a sample: part by its number in the whole cache."""
    return f"{part:07d}-{row:05d}"


def shard_of(part: int) -> str:
    """The shard's name of a part."""
    return f"shard-{part // PARTS_OF_A_SHARD:06d}.tar"


@dataclass(frozen=True)
class Synthetic:
    """A cache to be made.

    Attributes:
        uri: where.
        s3: how S3 is reached.
        rows: samples of a part.
        prefix_bytes: of a sample; 0 makes rows alone, without a tar, which `verify` finds sound.
        tables: write the parts' tables, too; else their records name tables that are not there.
    """

    uri: str
    s3: S3Config
    rows: int
    prefix_bytes: int
    tables: bool

    def build(self, parts: Iterable[int]) -> None:
        """Make the cache, unless it is there already, and seal its catalog, as a run does that ends."""
        if not any(True for _ in self._store.list(DATASET)):
            if self.prefix_bytes:
                self._store.put(self._tar, b"".join(self._members))
            self.commit(parts)
        complete_catalog(self._store, read_commits(self._store, THREADS), THREADS)

    def commit(self, parts: Iterable[int]) -> None:
        """Commit parts without a word to the catalog."""
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._commit, parts))

    @cached_property
    def _store(self) -> ObjectStore:
        return open_store(self.uri, self.s3)

    @cached_property
    def _dataset(self) -> Dataset:
        return create_or_check(self._store, IDENTITY, self.rows)

    @cached_property
    def _tar(self) -> str:
        return data_name("shard-000000.tar", 0, ATTEMPT, "tar")

    @cached_property
    def _members(self) -> list[bytes]:
        return [random.Random(number).randbytes(self.prefix_bytes) for number in range(MEMBERS)]

    @cached_property
    def _checksums(self) -> list[str]:
        return [xxhash.xxh3_128_hexdigest(member) for member in self._members]

    @cached_property
    def _table(self) -> pa.Table:
        """The rows of part 0; of the others only keys and indices differ."""
        dice = random.Random(0)
        rows = [self._row(number, dice) for number in range(self.rows)]
        return pa.Table.from_pylist(rows, stamped(SAMPLES, SCHEMA_VERSION, self._dataset.identity_hash))

    @cached_property
    def _statistics(self) -> PartStatistics:
        """Of any part: they are the same in all."""
        tokens, retention, milliseconds = (
            self._table.column(name).to_numpy() for name in ("image_tokens", "retention", "prefill_ms")
        )
        held = float((retention.astype(float) * tokens).sum())
        return PartStatistics(
            int(tokens.sum()), held, self.prefix_bytes * self.rows, float(milliseconds.sum(dtype=float)) / 1e3, {}
        )

    def _row(self, number: int, dice: random.Random) -> dict[str, Any]:
        """A row like a real one, but with a tenth of the kept tokens: writing them is most of the work."""
        kept = [sorted(dice.sample(range(2340), count)) for count in (78, 32, 13)]
        image = {"hash": f"{number:032x}", "width": 640, "height": 480, "grid_rows": 2, "grid_columns": 2}
        return {
            **self._place(0, number),
            "embeds_object": None,
            "embeds_offset": None,
            "embeds_length": None,
            "embeds_checksum": None,
            "index": number,
            "images": [{**image, "tokens": 2340}],
            "prompt": PROMPT,
            "turns": None,
            "answer": "yes" if number % 2 else "no",
            "prompt_ids": [dice.randrange(32000) for _ in range(24)],
            "prompt_tokens": 2364,
            "image_tokens": 2340,
            "kept": kept,
            "segments": [{"first_layer": 8 * run, "layers": 8, "rows": 800 - 200 * run} for run in range(4)],
            "retention": 0.111,
            "codec": "raw",
            "first_token": 42,
            "first_logprob": dice.uniform(-3, 0),
            "top_ids": [dice.randrange(32000) for _ in range(5)],
            "top_logprobs": [dice.uniform(-9, 0) for _ in range(5)],
            "answer_ids": None,
            "target_ids": None,
            "target_logprobs": None,
            "prefill_ms": dice.uniform(5, 15),
            "encode_ms": dice.uniform(1, 5),
        }

    def _place(self, part: int, number: int) -> dict[str, Any]:
        if not self.prefix_bytes:
            return {"key": key_of(part, number), **dict.fromkeys(place_columns("kv"))}
        member = number % MEMBERS
        return {
            "key": key_of(part, number),
            "kv_object": self._tar,
            "kv_offset": member * self.prefix_bytes,
            "kv_length": self.prefix_bytes,
            "kv_checksum": self._checksums[member],
        }

    def _commit(self, part: int) -> None:
        shard, number = shard_of(part), part % PARTS_OF_A_SHARD
        nowhere = {f"embeds_{what}": None for what in ("object", "offset", "length", "checksum")}
        rows = [{**self._place(part, row), **nowhere} for row in range(self.rows)]
        files: dict[FileKind, FileRecord] = {}
        if self.prefix_bytes:
            files["tar"] = FileRecord(self._tar, MEMBERS * self.prefix_bytes, "0" * 32)
        files["locators"] = self._put(shard, number, "locators", locators_of(rows).tobytes())
        files["samples"], footer = self._samples(shard, number, part)
        now = utc_now()
        record = CommitRecord(
            schema_version=SCHEMA_VERSION,
            identity_hash=self._dataset.identity_hash,
            shard=ShardInput(shard, f"s3://corpus/{shard}", 1 << 30, f"{part:032x}", None),
            part=number,
            attempt=ATTEMPT,
            last=number == PARTS_OF_A_SHARD - 1,
            stored=self.rows,
            quarantined=0,
            statistics=self._statistics,
            files=files,
            footer=footer,
            run=RunRecord("0" * 12, "host", now, now, package_version()),
            replica="host GPU 0",
        )
        create_commit(self._store, record)

    def _samples(self, shard: str, number: int, part: int) -> tuple[FileRecord, FooterRecord]:
        if not self.tables:
            return FileRecord(data_name(shard, number, ATTEMPT, "samples"), 1 << 20, "0" * 32), FooterRecord(
                1, "0" * 32
            )
        keys = pa.array([key_of(part, row) for row in range(self.rows)], pa.string())
        indices = pa.array(range(number * self.rows, (number + 1) * self.rows), SAMPLES.field("index").type)
        table = self._table.set_column(0, SAMPLES.field("key"), keys)
        table = table.set_column(table.schema.get_field_index("index"), SAMPLES.field("index"), indices)
        data, size = write_row_groups(table)
        return self._put(shard, number, "samples", data), FooterRecord(size, xxhash.xxh3_128_hexdigest(data[-size:]))

    def _put(self, shard: str, number: int, kind: FileKind, data: bytes) -> FileRecord:
        name = data_name(shard, number, ATTEMPT, kind)
        self._store.put(name, data)
        return FileRecord(name, len(data), xxhash.xxh3_128_hexdigest(data))
