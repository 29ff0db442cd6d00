"""Numbers about the samples of a cache, streamed from its tables shard by shard; what is kept of each is small.

A large cache is represented by whole shards, drawn at random until they have enough samples.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.model.patch_grid import PatchGrid
from trio_ray.ordered import ordered_map
from trio_ray.report.heat_map import KeptPlaces

Floats = NDArray[np.float64]


@dataclass
class SampleNumbers:
    """Of each drawn sample, in the order of the cache.

    Attributes:
        total: samples of the whole cache.
        number: places among all samples of the cache (`PrunedCache.rows_at`).
        shards: names of the drawn shards; `shard` is each sample's place among them.
        keys: the keys.
        image_tokens: before pruning.
        kept: (points, n) tokens that each prune point keeps.
        retention: share of image tokens held, mean over layers.
        size: bytes beside the row.
        chance: probability of the most likely first token; NaN where there is none.
        places: where the kept tokens are.
        unplaced: images whose tokens do not follow from their size.
    """

    total: int
    number: NDArray[np.int64]
    shards: list[str]
    shard: NDArray[np.int64]
    keys: list[str]
    image_tokens: NDArray[np.int64]
    kept: NDArray[np.int64]
    retention: Floats
    size: NDArray[np.int64]
    chance: Floats
    places: KeptPlaces
    unplaced: int

    def __len__(self) -> int:
        return len(self.keys)


@dataclass
class _Gathered:
    """Columns, a piece for each shard."""

    pieces: dict[str, list[NDArray[np.int64] | Floats]] = field(default_factory=lambda: defaultdict(list))

    def joined(self, name: str, dtype: type = np.int64) -> NDArray[np.int64]:
        pieces = self.pieces[name]
        return np.concatenate(pieces, axis=-1).astype(dtype) if pieces else np.zeros(0, dtype)


def sample_numbers(cache: PrunedCache, most: int, seed: int = 0) -> SampleNumbers:
    """Read the tables of as many shards as have `most` samples.

    Raises:
        ObjectDamaged: a table is not as it was committed.
        StoreError: it cannot be read.
    """
    first, counts = places_of_shards(cache)
    drawn = draw_shards(counts, most, seed)
    member = length_column(cache)
    columns = ["key", "images", "image_tokens", "kept", "retention", "first_logprob", *([member] if member else [])]
    points = len(cache.method.schedule.prune_points)
    places = KeptPlaces(points)
    gathered, keys, unplaced = _Gathered(), list[str](), 0
    for place, table in enumerate(_tables(cache, drawn, columns)):
        rows = table.num_rows
        keys += table.column("key").to_pylist()
        add = gathered.pieces
        add["number"].append(first[drawn[place]] + np.arange(rows))
        add["shard"].append(np.full(rows, place))
        add["image_tokens"].append(table.column("image_tokens").to_numpy())
        add["retention"].append(table.column("retention").to_numpy().astype(np.float64))
        add["chance"].append(np.exp(table.column("first_logprob").to_numpy(zero_copy_only=False).astype(np.float64)))
        add["size"].append(table.column(member).to_numpy() if member else np.zeros(rows, np.int64))
        kept = _Kept(table, points)
        add["kept"].append(kept.counts)
        unplaced += _place(table, kept, places)
    kept_counts = gathered.joined("kept")
    return SampleNumbers(
        total=len(cache),
        number=gathered.joined("number"),
        shards=drawn,
        shard=gathered.joined("shard"),
        keys=keys,
        image_tokens=gathered.joined("image_tokens"),
        kept=kept_counts if kept_counts.ndim == 2 else kept_counts.reshape(points, 0),
        retention=gathered.joined("retention", np.float64).astype(np.float64),
        size=gathered.joined("size"),
        chance=gathered.joined("chance", np.float64).astype(np.float64),
        places=places,
        unplaced=unplaced,
    )


def length_column(cache: PrunedCache) -> str | None:
    """The column with the bytes beside a row; None where there are none."""
    return {"kv": "kv_length", "embeds": "embeds_length"}.get(cache.level)


class _Kept:
    """The kept tokens of a table's rows.

    Attributes:
        counts: (points, rows).
        tokens: of all rows and points, one after the other; those of row r and point p begin at `starts[r, p]`.
    """

    def __init__(self, table: pa.Table, points: int) -> None:
        column = table.column("kept").combine_chunks()
        lists = column.flatten() if len(column) else pa.array([], pa.list_(pa.int32()))
        self.tokens: NDArray[np.int64] = lists.flatten().to_numpy().astype(np.int64)
        counts = pc.list_value_length(lists).to_numpy().astype(np.int64).reshape(-1, points)
        self.counts = counts.T
        self.starts = (
            np.concatenate([[0], np.cumsum(counts.ravel())[:-1]]).reshape(counts.shape) if len(counts) else counts
        )


def _place(table: pa.Table, kept: _Kept, places: KeptPlaces) -> int:
    """Count where the tokens of a table's rows lie; returns the number of images of which that is not known."""
    groups: dict[PatchGrid, list[tuple[int, int, int]]] = defaultdict(list)
    unplaced = 0
    for row, images in enumerate(table.column("images").to_pylist()):
        start = 0
        for image in images:
            try:
                groups[PatchGrid.of_image(image)].append((row, start, start + image["tokens"]))
            except ValueError:
                unplaced += 1
            start += image["tokens"]
    points = places.points
    for grid, members in groups.items():
        own: list[list[NDArray[np.int64]]] = [[] for _ in range(points)]
        for row, start, stop in members:
            for point in range(points):
                first = kept.starts[row, point]
                tokens = kept.tokens[first : first + kept.counts[point, row]]
                own[point].append(tokens[(tokens >= start) & (tokens < stop)] - start)
        places.add_all(grid, len(members))
        places.add(grid, [np.concatenate(tokens) for tokens in own])
    return unplaced


def places_of_shards(cache: PrunedCache) -> tuple[dict[str, int], dict[str, int]]:
    """For each shard the number of its first sample among all, and how many it has."""
    first, counts, at = dict[str, int](), dict[str, int](), 0
    for commit in cache.commits:
        name = commit.shard.name
        first.setdefault(name, at)
        counts[name] = counts.get(name, 0) + commit.stored
        at += commit.stored
    return first, counts


def draw_shards(counts: dict[str, int], most: int, seed: int = 0) -> list[str]:
    """Shards with at most `most` samples together, at least one; in the order of the cache."""
    names = [name for name, count in counts.items() if count]
    if sum(counts.values()) <= most:
        return names
    order, drawn, samples = random.Random(seed).sample(names, len(names)), set[str](), 0
    for name in order:
        if drawn and samples + counts[name] > most:
            break
        drawn.add(name)
        samples += counts[name]
    return [name for name in names if name in drawn]


def _tables(cache: PrunedCache, shards: list[str], columns: list[str]) -> Iterator[pa.Table]:
    return ordered_map(lambda shard: cache.read_table(columns, shard), shards, threads=2, lookahead=2)
