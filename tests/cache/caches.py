"""Caches of random prefixes, written by the real part writer in no time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.kv.prefixes import codec_of, contained, random_prefix
from tests.store.caches import row
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import S3Config
from trio_ray.kv.codecs.registry import full_spec
from trio_ray.kv.prefix import Prefix
from trio_ray.store.commits import ShardInput
from trio_ray.store.dataset import create_or_check
from trio_ray.store.opening import open_store
from trio_ray.store.parts import PartWriter

CODEC = {"name": "raw", "zstd": 0}
IDENTITY: dict[str, Any] = {"model": {"name": "tiny"}, "cache": {"level": "kv", "codec": full_spec(CODEC), "top_k": 3}}


def key_of(shard: int, number: int) -> str:
    """The key of a shard's sample."""
    return f"s{shard}.{number:05d}"


def prefix_of(key: str, sizes: Sequence[int] = (30, 17, 9)) -> Prefix:
    """The prefix that a cache holds under a key: random, of a length that differs from key to key."""
    number = int(key.split(".")[1])
    return random_prefix(rows=[size + number % 5 for size in sizes], seed=number)


def write_cache(
    uri: str | Path, parts: Sequence[Sequence[int]], s3: S3Config | None = None, sizes: Sequence[int] = (30, 17, 9)
) -> PrunedCache:
    """A cache whose shard s has the parts `parts[s]`, of so many samples each; every part has one in quarantine."""
    store = open_store(str(uri), s3 or S3Config())
    dataset = create_or_check(store, IDENTITY, part_samples=max(max(counts, default=0) for counts in parts))
    codec = codec_of(CODEC)
    for shard, counts in enumerate(parts):
        source = ShardInput(f"shard-{shard:05d}.tar", f"s3://corpus/shard-{shard:05d}.tar", 1234, "e1", None)
        first = 0
        for part, count in enumerate(counts):
            writer = PartWriter(store, dataset, source, part, "run-1")
            for number in range(first, first + count):
                key = key_of(shard, number)
                writer.add(row(key, number), contained(prefix_of(key, sizes), codec, key, dataset.identity_hash))
            writer.quarantine(f"bad{part}", 10**6 + part, "image_corrupt", "cannot be decoded")
            assert writer.commit(last=part + 1 == len(counts))
            first += count
    return PrunedCache(str(uri), s3)
