"""The sample that a row was made from, read again from its input shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import xxhash

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import S3Config, SourceConfig
from trio_ray.errors import PrefixError
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import BadSample, Reason, Sample
from trio_ray.source.shards import split_file
from trio_ray.store.inputs import StoreOpener

_PLACES = "say where the images are now with --image-root, or --allow-any-path"


class InputChanged(PrefixError):
    """The input no longer holds what a stored sample was made from."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Reread:
    """How a cache's input is read again. A cache does not hold where its images were, as that may change.

    Attributes:
        s3: where S3 is.
        image_root, allow_any_path: see `SourceConfig`.
    """

    s3: S3Config
    image_root: str | None = None
    allow_any_path: bool = False

    def source(self, identity: dict[str, Any]) -> SourceConfig:
        """The settings that the cache was made with, and where its images are now."""
        places = {"image_root": self.image_root, "allow_any_path": self.allow_any_path}
        return SourceConfig.model_validate({**identity["source"], **places})


def read_again(cache: PrunedCache, rows: list[dict[str, Any]], how: Reread) -> list[Sample]:
    """The samples of these rows, in order, held against the stored hashes of their images; each shard is read once.

    Raises:
        InputChanged: a shard has no such sample, or one with other images, or an image cannot be read.
        StoreError: a shard cannot be read.
    """
    found: dict[tuple[str, int], Sample | BadSample] = {}
    for shard in dict.fromkeys(row["shard"] for row in rows):
        wanted = {row["index"] for row in rows if row["shard"] == shard}
        found |= {(shard, item.index): item for item in _read_shard(cache, shard, wanted, how)}
    samples = []
    for row in rows:
        sample = found.get((row["shard"], row["index"]))
        hashes = [image["hash"] for image in row["images"]]
        if isinstance(sample, BadSample):
            cure = f"; {_PLACES}" if sample.reason in (Reason.IMAGE_MISSING, Reason.IMAGE_OUTSIDE) else ""
            message = f"it cannot be read again from its shard {row['shard']} ({sample.reason}: {sample.detail}){cure}"
            raise InputChanged(row["key"], cache.uri, message)
        if sample is None or [xxhash.xxh3_128_hexdigest(data) for data in sample.images] != hashes:
            message = f"its shard {row['shard']} no longer holds the image that it was made from"
            raise InputChanged(row["key"], cache.uri, message)
        samples.append(sample)
    return samples


def _read_shard(cache: PrunedCache, name: str, wanted: set[int], how: Reread) -> list[Sample | BadSample]:
    record = next(commit.shard for commit in cache.commits if commit.shard.name == name)
    source = how.source(cache.dataset.identity)
    opener = StoreOpener(how.s3)
    # Any version of the file will do: what is asked of a sample is that its images are still the same.
    shards = split_file(record.uri, record.size, "", source, opener)
    shard = next(shard for shard in shards if shard.name == record.name)
    return list(read_shard(shard, source, opener, skip=lambda index: index not in wanted))
