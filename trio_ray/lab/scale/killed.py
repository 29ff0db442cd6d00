"""Processes that commit parts and catalogue them until they are killed, again and again, while another one reads.

A process of its own, JSON in, JSON out. It only forks, waits and kills; whatever uses the store runs in its children.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import S3Config
from trio_ray.lab.scale.made_parts import commit_part, sample_bytes
from trio_ray.lab.scale.moments import Moments
from trio_ray.lab.scale.synthetic import IDENTITY
from trio_ray.lab.soak.soak import account
from trio_ray.store import catalog_writer
from trio_ray.store.catalog import unseal
from trio_ray.store.catalog_writer import CatalogWriter, complete_catalog
from trio_ray.store.commit_table import Part, read_commits
from trio_ray.store.commits import ShardInput
from trio_ray.store.dataset import create_or_check, load_dataset
from trio_ray.store.gc import collect_garbage
from trio_ray.store.opening import open_store
from trio_ray.store.verify import verify

THREADS = 4
SHARD_PARTS = 10
PART_SAMPLES = 3
MEMBER_BYTES = 2000
SEGMENT_PARTS = 16
"""Far fewer than a job's, so that segments, indexes and versions are being written most of the time."""

LONGEST_LIFE_S = 0.8
"""A third of the kills come so soon after the writer's start, at any moment of its opening the cache and later."""

DATA_WRITES = 30
CATALOG_WRITES = 6
WRITE_WAIT_S = 5.0
WRITE_DELAY_S = 0.003
"""The others come at most so long after one of the first `DATA_WRITES` files and records, or one of the first
`CATALOG_WRITES` objects of the catalog, began to be written."""

LONGEST_RUN = 40
"""Parts of a run; the shortest has none. Where a writer is alone, one run follows the other until it is killed."""

UNENDING = 1 << 30
TWO_AT_ONCE = 1 / 3
"""Share of the lives that two processes share, as when two runs work on one cache. These runs do not end: what one of
them seals would lack what the other commits until that one looks."""

LOOKED_UP = 6
PROBLEMS_TOLD = 20
GARBAGE_AFTER_S = 1.1
"""S3 counts whole seconds."""


def shard_name(number: int) -> str:
    """The name of a shard."""
    return f"made-{number:05d}"


def keys_of(part: Part) -> dict[int, str]:
    """The samples of a part: index in the shard -> key."""
    shard, number = part
    return {index: f"{shard}/{index}" for index in range(number * PART_SAMPLES, (number + 1) * PART_SAMPLES)}


@dataclass
class Bench:
    """The cache, and what its processes tell each other: a file of the parts whose commit was confirmed."""

    uri: str
    s3: S3Config
    confirmed_file: Path

    def confirmed(self) -> list[Part]:
        """Parts whose commit has been confirmed to a writer, in that order."""
        lines = self.confirmed_file.read_text(encoding="ascii").splitlines()
        return [(shard, int(number)) for shard, number in (line.split() for line in lines)]

    def create(self) -> dict[str, Any]:
        """Make an empty cache."""
        create_or_check(open_store(self.uri, self.s3), IDENTITY, PART_SAMPLES)
        return {}

    def write(self, parts: int | None = None) -> dict[str, Any]:
        """What a run does: unseal the catalog, commit so many of the missing parts, complete the catalog and seal it.

        Without a number these are all of the shards that have been begun.
        """
        store = open_store(self.uri, self.s3)
        dataset = load_dataset(store)
        unseal(store)
        commits = read_commits(store, THREADS)
        with self.confirmed_file.open("ab", buffering=0) as confirmed, CatalogWriter(store, THREADS) as catalog:
            for shard, part in islice(self._missing(commits.progress(), only_begun=parts is None), parts):
                source = ShardInput(shard, f"s3://corpus/{shard}.tar", 1, "e", None)
                last = part == SHARD_PARTS - 1
                if commit_part(store, dataset, source, part, keys_of((shard, part)), last, MEMBER_BYTES):
                    confirmed.write(f"{shard} {part}\n".encode())
                    catalog.committed((shard, part))
        complete_catalog(store, read_commits(store, THREADS), THREADS)
        return {}

    def write_on_and_on(self, alone: bool, seed: int) -> dict[str, Any]:
        """Run after run, each of a few parts; or one run without end beside another process."""
        dice = random.Random(seed)
        while True:
            self.write(dice.randrange(LONGEST_RUN) if alone else UNENDING)

    def _missing(self, progress: Any, only_begun: bool) -> Iterator[Part]:
        for number in count():
            begun = progress.get(shard_name(number))
            if begun is None and only_begun:
                return
            for part in range(SHARD_PARTS):
                if begun is None or part not in begun.parts:
                    yield shard_name(number), part

    def read(self, stop: mmap.mmap) -> dict[str, Any]:
        """Open the cache until told to stop, and hold against what was seen and confirmed before."""
        reader = _Reader(self)
        while not stop[0]:
            reader.look()
        return {"openings": reader.openings, "lookups": reader.lookups, "problems": reader.problems}

    def judge(self) -> dict[str, Any]:
        """What the cache holds once nobody writes, and what `verify` says before and after `gc`."""
        store = open_store(self.uri, self.s3)
        reader = _Reader(self)
        reader.look(everything=True)
        shards = len(read_commits(store, THREADS).progress())
        found = account(store, shards, SHARD_PARTS * PART_SAMPLES)
        time.sleep(GARBAGE_AFTER_S)
        garbage = collect_garbage(store, 0.0, dry_run=False)
        left = [str(finding) for finding in verify(store, THREADS).findings]
        reader.look(everything=True)
        parts = len(read_commits(store, THREADS))
        return {**found, "parts": parts, "garbage": len(garbage), "left": left, "problems": reader.problems}


@dataclass
class _Reader:
    bench: Bench
    seen: dict[Part, str] = field(default_factory=dict)
    openings: int = 0
    lookups: int = 0
    problems: list[str] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(1))

    def look(self, everything: bool = False) -> None:
        """Open the cache once; look up a key of some parts, or of all."""
        confirmed = self.bench.confirmed()
        self.openings += 1
        try:
            self._compare(PrunedCache(self.bench.uri, self.bench.s3), confirmed, everything)
        except Exception as error:  # whatever a reader meets is what is looked for
            self._problem(f"{type(error).__name__}: {error}")

    def _compare(self, cache: PrunedCache, confirmed: list[Part], everything: bool) -> None:
        found = {(record.shard.name, record.part): record.attempt for record in cache.commits}
        for part in confirmed:
            if part not in found:
                self._problem(f"{part} was confirmed and is not in the cache")
        for part, attempt in self.seen.items():
            if found.get(part) != attempt:
                self._problem(f"{part} was of attempt {attempt} and is of {found.get(part)}")
        self.seen = found
        if len(cache) != len(found) * PART_SAMPLES:
            self._problem(f"{len(found)} parts have {len(cache)} samples")
        parts = list(found)
        drawn = parts if everything else [*confirmed[-2:], *self.dice.sample(parts, min(LOOKED_UP, len(parts)))]
        for part in drawn:
            index, key = self.dice.choice(list(keys_of(part).items()))
            self._look_up(cache, part, index, key)

    def _look_up(self, cache: PrunedCache, part: Part, index: int, key: str) -> None:
        self.lookups += 1
        row, place = cache.row(key), cache.locate(key)
        (stored,) = cache.fetch([place])
        if isinstance(stored, Exception):
            raise stored
        if (row["shard"], row["index"]) != (part[0], index):
            self._problem(f"{key} is found as {row['index']} of {row['shard']}")
        if stored.data.numpy().tobytes() != sample_bytes(key, MEMBER_BYTES):
            self._problem(f"{key} has other bytes")

    def _problem(self, text: str) -> None:
        if len(self.problems) < PROBLEMS_TOLD:
            self.problems.append(text)


class _Child:
    """A forked process, and the pipe for its answer."""

    def __init__(self, work: Callable[[], dict[str, Any]]) -> None:
        self._answer, into = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _answer_and_end(work, into)
        os.close(into)

    def kill(self) -> bool:
        """Kill it; False if it had ended by itself."""
        os.kill(self.pid, signal.SIGKILL)
        os.close(self._answer)
        return os.WIFSIGNALED(os.waitpid(self.pid, 0)[1])

    def result(self) -> dict[str, Any]:
        """Wait for its answer."""
        with os.fdopen(self._answer, encoding="utf-8") as pipe:
            text = pipe.read()
        os.waitpid(self.pid, 0)
        answer: dict[str, Any] = json.loads(text) if text else {"error": "it ended without an answer"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def _answer_and_end(work: Callable[[], dict[str, Any]], into: int) -> None:
    try:
        answer = work()
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
        print(answer["error"], file=sys.stderr, flush=True)
    with os.fdopen(into, "w", encoding="utf-8") as pipe:
        pipe.write(json.dumps(answer))
    os._exit(0)


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Kill as often as ordered; returns what was struck, what the reader met, and what is left."""
    bench = Bench(order["uri"], S3Config.model_validate(order["s3"]), Path(order["confirmed"]))
    bench.confirmed_file.touch()
    dice = random.Random(order["seed"])
    _Child(bench.create).result()
    stop = mmap.mmap(-1, 1)
    reader = _Child(lambda: bench.read(stop))
    began = time.monotonic()
    struck: Counter[str] = Counter()
    failed = 0
    with patch.object(catalog_writer, "SEGMENT_PARTS", SEGMENT_PARTS):
        for _ in range(order["kills"]):
            for moment, was_running in _one_life(bench, dice):
                struck[moment] += was_running
                failed += not was_running
        seconds = time.monotonic() - began
        stop[0] = 1
        seen = reader.result()
        _Child(bench.write).result()
    after = _Child(bench.judge).result()
    return {
        "kills": struck.total(),
        "seconds": seconds,
        "struck": dict(struck.most_common()),
        "writers_failed": failed,
        "openings": seen["openings"],
        "lookups": seen["lookups"],
        **after,
        "problems": [*seen["problems"], *after["problems"]],
    }


def _one_life(bench: Bench, dice: random.Random) -> Iterator[tuple[str, bool]]:
    """One or two writers from their start to their kill; yields for each what it was writing, and whether it ran."""
    writers = []
    two = dice.random() < TWO_AT_ONCE
    for _ in range(1 + two):
        moments = Moments()
        work = partial(_watched, bench, moments, alone=not two, seed=dice.randrange(1 << 30))
        writers.append((_Child(work), moments))
    for child, moments in writers:
        match dice.randrange(3):
            case 0:
                time.sleep(dice.uniform(0, LONGEST_LIFE_S))
            case 1:
                _wait_for_write(partial(getattr, moments, "data"), dice.randrange(DATA_WRITES))
            case 2:
                _wait_for_write(partial(getattr, moments, "catalog"), dice.randrange(CATALOG_WRITES))
        time.sleep(dice.uniform(0, WRITE_DELAY_S))
        was_running = child.kill()
        yield moments.catalog or moments.data or "nothing", was_running


def _wait_for_write(written: Callable[[], str], number: int) -> None:
    """Until this write begins, of those that are seen; not for ever."""
    end = time.monotonic() + WRITE_WAIT_S
    before, seen = "", -1
    while seen < number and time.monotonic() < end:
        now = written()
        seen += bool(now) and now != before
        before = now
        time.sleep(0.0002)


def _watched(bench: Bench, moments: Moments, alone: bool, seed: int) -> dict[str, Any]:
    with moments.watched():
        return bench.write_on_and_on(alone, seed)


def main() -> int:
    """Read an order from standard input, write what was found as JSON."""
    print(json.dumps(run(json.load(sys.stdin))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
