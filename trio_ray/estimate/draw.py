"""A sample of the corpus that a job will read, and how many samples the whole corpus has.

Drawn are short runs of consecutive samples, at equal distances over each of some shards, which lie evenly over the
input: questions about one image follow each other, and that they share its pass through the vision tower is part of the
speed. Of a tar that is larger, the first `COUNTED_FOR_EACH` times as many samples as are drawn from it stand for the
rest; they are counted by their headers alone.
"""

from __future__ import annotations

import collections
import contextlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import BinaryIO

from trio_ray.config import JobConfig, SourceConfig
from trio_ray.errors import ConfigError, StoreError
from trio_ray.precompute.plan import find_units
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import BadSample, Opener, Sample, Shard
from trio_ray.source.shards import evenly
from trio_ray.store.inputs import StoreOpener

RUN_SAMPLES = 16
"""Consecutive samples of a run, before those images are left out of whose questions the run has only some."""

COUNTED_FOR_EACH = 20
"""How many samples of a tar are counted for each one that is drawn from it."""

_LATER_TURN = re.compile(r"#[1-9]\d*$")
"""Ends the key of a conversation's second or later question (`source.turns: each`)."""

Item = Sample | BadSample


@dataclass(frozen=True)
class Counted:
    """The first `items` samples of a shard, and their `share` of it: of a tar's bytes, or of a file's rows."""

    shard: Shard
    items: int
    share: float


@dataclass(frozen=True)
class DrawnCorpus:
    """The drawn samples, and what they say about the corpus.

    Attributes:
        shards: all that can be read, in the job's order.
        unreadable: how many cannot.
        runs: consecutive samples, good and bad ones.
        items: of each of `shards`, the number of its samples.
        exact: whether these numbers are counts and no estimates.
    """

    shards: tuple[Shard, ...]
    unreadable: int
    runs: tuple[tuple[Item, ...], ...]
    items: tuple[float, ...]
    exact: bool


def draw_corpus(config: JobConfig, count: int) -> DrawnCorpus:
    """Draw about `count` samples, bad ones included, evenly over the shards of a job's input.

    Rows of Parquet and JSONL files are counted; a tar's samples are estimated from its bytes and from those that the
    drawn samples of all tars take.

    Raises:
        ConfigError: no input, or nothing of it can be read; names `input`.
    """
    if not config.input:
        raise ConfigError("input", "names no shards; give paths or s3:// URIs")
    units = find_units(config)
    shards = [shard for shard, reason in units if reason is None]
    chosen = evenly(shards, math.ceil(count / RUN_SAMPLES))
    opener = StoreOpener(config.s3)
    runs: list[tuple[Item, ...]] = []
    counted: list[Counted] = []
    for shard in chosen:
        wanted = math.ceil(count / len(chosen))
        try:
            first = _count(shard, config.source, opener, COUNTED_FOR_EACH * wanted)
            runs += _draw(first, config.source, opener, wanted)
            counted.append(first)
        except StoreError:
            shards.remove(shard)
    if not runs:
        raise ConfigError("input", "holds nothing that could be read; run the job to see why in its failure records")
    items = _extrapolate(shards, counted, runs)
    whole = len(counted) == len(shards) and all(part.share == 1 for part in counted)
    rows = all(shard.rows is not None for shard in shards)
    exact = whole if not rows else config.source.turns == "first"
    return DrawnCorpus(tuple(shards), len(units) - len(shards), tuple(runs), tuple(items), exact)


class _Enough(Exception):
    """Ends a reader that has read as far as is needed."""


def _count(shard: Shard, config: SourceConfig, opener: Opener, most: int) -> Counted:
    """Count a shard's samples, up to `most`. Where rows are known, a row counts as a sample."""
    if shard.rows is not None:
        return Counted(shard, shard.rows[1] - shard.rows[0], 1.0)
    watched = _Watched(opener)
    highest, position = -1, 0

    def skip(index: int) -> bool:
        nonlocal highest, position
        if index == most:
            position = watched.position
            raise _Enough
        highest = index
        return True

    try:
        collections.deque(read_shard(shard, config, watched, skip), maxlen=0)
    except _Enough:
        return Counted(shard, most, min(1.0, position / shard.size))
    return Counted(shard, highest + 1, 1.0)


def _draw(counted: Counted, config: SourceConfig, opener: Opener, wanted: int) -> list[tuple[Item, ...]]:
    """Runs of samples from all over the counted ones, `wanted` samples in all or as many as there are."""
    starts = evenly(range(0, counted.items, RUN_SAMPLES), math.ceil(wanted / RUN_SAMPLES))
    indices = {start + step for start in starts for step in range(RUN_SAMPLES)}
    last = max(indices, default=-1)
    drawn: list[Item] = []

    def skip(index: int) -> bool:
        if index > last:
            raise _Enough
        return index not in indices

    with contextlib.suppress(_Enough):
        for item in read_shard(counted.shard, config, opener, skip):
            drawn.append(item)
    end = counted.items if counted.share == 1 else -1
    runs = (tuple(item for _, item in run) for _, run in groupby(enumerate(drawn), lambda at: at[1].index - at[0]))
    return [whole for run in runs if (whole := _whole_images(run, end))]


def _whole_images(run: tuple[Item, ...], end: int) -> tuple[Item, ...]:
    """A run without the image at either end that may have more questions beyond it; all of it where nothing is left.

    Args:
        run: consecutive items.
        end: the shard's number of items, where it is known: nothing lies beyond it.
    """
    images = [item.images if isinstance(item, Sample) else () for item in run]
    first, stop = 0, len(run)
    if run[0].index > 0:
        first = next((at for at in range(1, len(run)) if images[at] != images[0]), len(run))
    if run[-1].index + 1 != end:
        stop = next((at for at in range(len(run) - 1, 0, -1) if images[at - 1] != images[-1]), 0)
    return run[first:stop] if first < stop else run


def _extrapolate(shards: Sequence[Shard], counted: Sequence[Counted], runs: Sequence[Sequence[Item]]) -> list[float]:
    """Samples of each shard: its count where it was counted whole, else by density over the shards of its kind."""
    drawn = [item for run in runs for item in run]
    firsts = sum(_LATER_TURN.search(item.key) is None for item in drawn)
    of_rows = len(drawn) / max(1, firsts)
    tars = [part for part in counted if part.shard.rows is None]
    seen_bytes = sum(part.share * part.shard.size for part in tars)
    of_bytes = sum(part.items for part in tars) / seen_bytes if seen_bytes else 0.0
    whole = {part.shard.name: part.items for part in tars if part.share == 1}
    return [
        whole.get(shard.name, of_bytes * shard.size)
        if shard.rows is None
        else of_rows * (shard.rows[1] - shard.rows[0])
        for shard in shards
    ]


class _Watched:
    """Another opener, whose last opened file is asked how far it has been read."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._file: BinaryIO | None = None

    def open(self, uri: str, etag: str | None = None) -> BinaryIO:
        self._file = self._opener.open(uri, etag)
        return self._file

    def read(self, uri: str, limit: int | None = None) -> bytes:
        return self._opener.read(uri, limit)

    @property
    def position(self) -> int:
        """Bytes from the file's beginning."""
        return 0 if self._file is None else self._file.tell()
