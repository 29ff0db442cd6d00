"""The sample that a row was made from, read again from its input shard."""

from __future__ import annotations

from typing import Any

import xxhash

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import S3Config, SourceConfig
from trio_ray.errors import PrefixError
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import Sample
from trio_ray.source.shards import split_file
from trio_ray.store.inputs import StoreOpener


class InputChanged(PrefixError):
    """The input no longer holds what a stored sample was made from."""

    exit_code = 2


def read_again(cache: PrunedCache, rows: list[dict[str, Any]], s3: S3Config) -> list[Sample]:
    """The samples of these rows, in order, held against the stored hashes of their images; each shard is read once.

    Raises:
        InputChanged: a shard has no such sample, or one with other images.
        StoreError: a shard cannot be read.
    """
    found: dict[tuple[str, int], Sample] = {}
    for shard in dict.fromkeys(row["shard"] for row in rows):
        wanted = {row["index"] for row in rows if row["shard"] == shard}
        found |= {(shard, sample.index): sample for sample in _read_shard(cache, shard, wanted, s3)}
    samples = []
    for row in rows:
        sample = found.get((row["shard"], row["index"]))
        hashes = [image["hash"] for image in row["images"]]
        if sample is None or [xxhash.xxh3_128_hexdigest(data) for data in sample.images] != hashes:
            message = f"its shard {row['shard']} no longer holds the image that it was made from"
            raise InputChanged(row["key"], cache.uri, message)
        samples.append(sample)
    return samples


def _read_shard(cache: PrunedCache, name: str, wanted: set[int], s3: S3Config) -> list[Sample]:
    record = next(commit.shard for commit in cache.commits if commit.shard.name == name)
    source = SourceConfig.model_validate(cache.dataset.identity["source"])
    opener = StoreOpener(s3)
    # Any version of the file will do: what is asked of a sample is that its images are still the same.
    shards = split_file(record.uri, record.size, "", source, opener)
    shard = next(shard for shard in shards if shard.name == record.name)
    outcomes = read_shard(shard, source, opener, skip=lambda index: index not in wanted)
    return [outcome for outcome in outcomes if isinstance(outcome, Sample)]
