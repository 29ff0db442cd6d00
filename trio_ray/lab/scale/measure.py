"""One measurement of a cache, in a process of its own, so that its memory is known: JSON in, JSON out."""

from __future__ import annotations

import json
import pickle
import random
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import S3Config
from trio_ray.evaluate.join import join
from trio_ray.evaluate.question import Question
from trio_ray.lab.scale.requests import counted_requests
from trio_ray.lab.scale.synthetic import PARTS_OF_A_SHARD, PROMPT, THREADS, Synthetic, key_of, shard_of
from trio_ray.precompute.verdict import judge
from trio_ray.store.catalog_writer import append_parts, complete_catalog
from trio_ray.store.commit_table import open_commits, read_commits
from trio_ray.store.dataset import load_dataset
from trio_ray.store.failures import read_failures
from trio_ray.store.opening import open_store
from trio_ray.store.part_table import quarantine_rows

QUESTIONS = 1_000_000
PREFIXES = 256
KEYS = 64
"""Keys of which rows are read."""


class Subject:
    """A cache of so many parts, and what is done with it. Each method is a measurement; what it returns is reported."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.s3 = S3Config.model_validate(order["s3"])
        self.made = Synthetic(order["uri"], self.s3, order["rows"], order["prefix_bytes"], order["tables"])
        self.uri, self.parts, self.rows = order["uri"], order["parts"], order["rows"]
        self.dice = random.Random(0)
        self.cache: PrunedCache | None = None

    def prepare(self, what: str) -> None:
        """What a measurement needs and does not count."""
        if what in ("row_cold", "row_many", "row_warm", "prefixes", "prefixes_warm", "pickle", "join"):
            self.cache = PrunedCache(self.uri, self.s3)
        self.keys = [self._key() for _ in range(PREFIXES if what.startswith("prefixes") else KEYS)]
        if what.endswith("_warm"):
            for key in self.keys:
                self._cache.locate(key)
        if what == "append":
            self.made.commit(range(self.parts, self.parts + PARTS_OF_A_SHARD))
        if what == "join":
            count = min(QUESTIONS, self.parts * self.rows)
            picked = self.dice.sample(range(self.parts * self.rows), count)
            self.questions = [
                Question(key_of(*divmod(number, self.rows)), "", number, PROMPT[14:42], None, None) for number in picked
            ]

    def open(self) -> dict[str, Any]:
        return {"samples": len(PrunedCache(self.uri, self.s3))}

    def pickle(self) -> dict[str, Any]:
        return {"size": len(pickle.dumps(self._cache))}

    def row_cold(self) -> dict[str, Any]:
        """The first row of an open cache."""
        self._cache.row(self.keys[0])
        return {"of": 1}

    def row_many(self) -> dict[str, Any]:
        """Rows of random keys, one after the other, from an open cache on."""
        for key in self.keys:
            self._cache.row(key)
        return {"of": KEYS}

    def row_warm(self) -> dict[str, Any]:
        """The same, where the buckets of the keys and the records of their parts are in memory."""
        return self.row_many()

    def prefixes(self) -> dict[str, Any]:
        """Random prefixes by their keys, by `THREADS` threads; their bytes are compared with their checksums."""
        cache = self._cache

        def read(key: str) -> None:
            (stored,) = cache.fetch([cache.locate(key)])
            if isinstance(stored, Exception):
                raise stored

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(read, self.keys))
        return {"of": PREFIXES, "of_bytes": PREFIXES * self.made.prefix_bytes}

    def prefixes_warm(self) -> dict[str, Any]:
        """The same, where the buckets of the keys and the records of their parts are in memory."""
        return self.prefixes()

    def inspect(self) -> dict[str, Any]:
        """All that `trio-ray inspect` reads of a cache, and its sums."""
        store = open_store(self.uri, self.s3)
        load_dataset(store)
        commits = open_commits(store, THREADS)
        totals, failures = commits.totals, read_failures(store)
        examples = list(islice(quarantine_rows(store, commits), 10))
        return {"samples": totals.stored, "failures": len(failures), "examples": len(examples)}

    def join(self) -> dict[str, Any]:
        found, refused = join(self.questions, self._cache, "exact")
        return {"questions": len(self.questions), "found": len(found), "refused": len(refused)}

    def resume(self) -> dict[str, Any]:
        """All that a job with nothing left to do asks its output for."""
        store = open_store(self.uri, self.s3)
        commits = read_commits(store, THREADS)
        appended = complete_catalog(store, commits, THREADS)
        return {"shards": len(commits.progress()), "appended": appended, "stored": judge(commits, ()).stored}

    def append(self) -> dict[str, Any]:
        """A shard's parts to the catalog, as a running job does it."""
        parts = range(self.parts, self.parts + PARTS_OF_A_SHARD)
        append_parts(
            open_store(self.uri, self.s3), [(shard_of(part), part % PARTS_OF_A_SHARD) for part in parts], THREADS
        )
        return {"of": len(parts)}

    @property
    def _cache(self) -> PrunedCache:
        assert self.cache is not None
        return self.cache

    def _key(self) -> str:
        return key_of(self.dice.randrange(self.parts), self.dice.randrange(self.rows))


WHAT: tuple[str, ...] = (
    "open", "pickle", "row_cold", "row_many", "row_warm", "prefixes", "prefixes_warm", "inspect", "join", "resume",
    "append",
)  # fmt: skip
NEED_TABLES = ("row_cold", "row_many", "row_warm", "join")


def main() -> int:
    """Read an order from standard input, write what was measured as JSON."""
    order = json.load(sys.stdin)
    subject = Subject(order)
    subject.prepare(order["what"])
    measured: Callable[[], dict[str, Any]] = getattr(subject, order["what"])
    before = resource.getrusage(resource.RUSAGE_SELF)
    resident = resident_bytes()
    start_peak()
    began = time.perf_counter()
    with counted_requests() as requests:
        found = measured()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    answer = {
        "seconds": seconds,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        # Peak of the whole process, less what imports and preparation hold.
        "memory": peak_bytes() - resident,
        "gets": requests.gets,
        "lists": requests.lists,
        "writes": requests.writes,
        "bytes": requests.bytes,
        **found,
    }
    print(json.dumps(answer))
    return 0


def resident_bytes() -> int:
    """Memory of this process now."""
    return _status("VmRSS")


def start_peak() -> None:
    """Count the peak of this process's memory from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The peak of this process's memory."""
    return _status("VmHWM")


def _status(name: str) -> int:
    """Bytes of this process's memory by a name of Linux's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) << 10


if __name__ == "__main__":
    sys.exit(main())
