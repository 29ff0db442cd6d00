"""Two caches of one corpus, sample by sample: what both keep, how their first answer tokens differ, and their sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.errors import ConfigError
from trio_ray.ordered import ordered_map
from trio_ray.report.statistics import draw_shards, length_column, places_of_shards

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """A sample that two caches hold.

    Attributes:
        key, shard: of the sample.
        number, other_number: its place in each cache.
        overlap: tokens that both keep at their last prune point, as a share of those that either keeps; NaN where
            neither prunes.
        same_token: whether the most likely first answer token is the same.
        distance: half of the summed differences between the two distributions of the first answer token, over the
            tokens that are stored; from 0 to 1, NaN where none are.
        kept, other_kept: tokens kept at the last prune point.
        size, other_size: bytes beside the row.
    """

    key: str
    shard: str
    number: int
    other_number: int
    overlap: float
    same_token: bool
    distance: float
    kept: int
    other_kept: int
    size: int
    other_size: int


@dataclass(frozen=True)
class Pairs:
    """All pairs of the shards that were read.

    Attributes:
        pairs: in the order of the first cache.
        shards, common_shards: that were read, and that both caches have.
        alone, other_alone: samples of these shards that only one of them holds.
        other_image: keys that stand for other images in the two.
    """

    pairs: list[Pair]
    shards: int
    common_shards: int
    alone: int
    other_alone: int
    other_image: int

    def column(self, name: str) -> Floats:
        """One of the numbers of all pairs."""
        assert name in {field.name for field in fields(Pair)}
        return np.array([getattr(pair, name) for pair in self.pairs], np.float64)

    @property
    def same_tokens(self) -> float:
        """Share of pairs with the same most likely first token."""
        return float(self.column("same_token").mean()) if self.pairs else 0.0


def pair_samples(cache: PrunedCache, other: PrunedCache, most: int) -> Pairs:
    """Read the tables of as many common shards as have `most` samples, shard by shard.

    Raises:
        ConfigError: the caches have no shard in common.
        ObjectDamaged, StoreError: a table cannot be read.
    """
    first, counts = places_of_shards(cache)
    other_first, other_counts = places_of_shards(other)
    common = {name: count for name, count in counts.items() if other_counts.get(name) is not None}
    if not common:
        raise ConfigError(
            "OTHER", f"{other.uri} has no input shard in common with {cache.uri}; give two caches of the same files"
        )
    drawn = draw_shards(common, most)
    pairs: list[Pair] = []
    alone = other_alone = other_image = 0

    def read(shard: str) -> tuple[pa.Table, pa.Table]:
        return cache.read_table(_columns(cache), shard), other.read_table(_columns(other), shard)

    for shard, (table, other_table) in zip(drawn, ordered_map(read, drawn, threads=2, lookahead=2), strict=True):
        theirs = {row["key"]: row for row in _rows(other, other_table, other_first[shard])}
        met = 0
        for row in _rows(cache, table, first[shard]):
            found = theirs.get(row["key"])
            if found is None:
                alone += 1
            elif [image["hash"] for image in row["images"]] != [image["hash"] for image in found["images"]]:
                other_image += 1
                met += 1
            else:
                pairs.append(_pair(shard, row, found))
                met += 1
        other_alone += len(theirs) - met
    return Pairs(pairs, len(drawn), len(common), alone, other_alone, other_image)


def _columns(cache: PrunedCache) -> list[str]:
    member = length_column(cache)
    return ["key", "images", "kept", "top_ids", "top_logprobs", *([member] if member else [])]


def _rows(cache: PrunedCache, table: pa.Table, first: int) -> Iterator[dict[str, Any]]:
    member = length_column(cache)
    number = first
    for batch in table.to_batches(256):
        for row in batch.to_pylist():
            yield {**row, "number": number, "size": row[member] if member else 0}
            number += 1


def _pair(shard: str, row: dict[str, Any], other: dict[str, Any]) -> Pair:
    kept, other_kept = (set(one["kept"][-1]) if one["kept"] else None for one in (row, other))
    overlap = float("nan")
    if kept is not None and other_kept is not None and (kept or other_kept):
        overlap = len(kept & other_kept) / len(kept | other_kept)
    chances, other_chances = (
        dict(zip(one["top_ids"], np.exp(one["top_logprobs"]).tolist(), strict=True)) for one in (row, other)
    )
    tokens = chances.keys() | other_chances.keys()
    distance = sum(abs(chances.get(token, 0.0) - other_chances.get(token, 0.0)) for token in tokens) / 2
    return Pair(
        key=row["key"],
        shard=shard,
        number=row["number"],
        other_number=other["number"],
        overlap=overlap,
        same_token=row["top_ids"][:1] == other["top_ids"][:1],
        distance=distance if chances and other_chances else float("nan"),
        kept=len(kept or ()),
        other_kept=len(other_kept or ()),
        size=row["size"],
        other_size=other["size"],
    )
