"""The sample that a row was made from, read again from its input shard."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import S3Config, SourceConfig
from trio_ray.errors import ConfigError, PrefixError, StoreError
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
    """The samples of these rows, in order, compared with the stored hashes of their images; each shard is read once.

    Raises:
        InputChanged: a shard has no such sample, or one with other images, or an image cannot be read.
        StoreError: a shard cannot be read.
        ConfigError: a shard has no column any more that the settings name.
    """
    found: dict[tuple[str, int], Sample | BadSample] = {}
    for shard in dict.fromkeys(row["shard"] for row in rows):
        wanted = {row["index"] for row in rows if row["shard"] == shard}
        key = next(row["key"] for row in rows if row["shard"] == shard)
        found |= {(shard, item.index): item for item in read_items(cache, shard, wanted, how, key)}
    return [_same_sample(cache, row, found.get((row["shard"], row["index"]))) for row in rows]


def read_what_is_there(cache: PrunedCache, rows: list[dict[str, Any]], how: Reread) -> list[Sample | InputChanged]:
    """As `read_again`; instead of a sample that cannot be read again there is the error that says why."""
    outcomes: dict[int, Sample | InputChanged] = {}
    for shard in dict.fromkeys(row["shard"] for row in rows):
        own = {number: row for number, row in enumerate(rows) if row["shard"] == shard}
        try:
            wanted = {row["index"] for row in own.values()}
            items = {item.index: item for item in read_items(cache, shard, wanted, how)}
        except InputChanged as error:
            outcomes |= dict.fromkeys(own, error)
            continue
        except (StoreError, ConfigError) as error:
            outcomes |= {number: InputChanged(row["key"], cache.uri, str(error)) for number, row in own.items()}
            continue
        for number, row in own.items():
            try:
                outcomes[number] = _same_sample(cache, row, items.get(row["index"]))
            except InputChanged as error:
                outcomes[number] = error
    return [outcomes[number] for number in range(len(rows))]


def read_items(
    cache: PrunedCache,
    shard: str,
    wanted: Collection[int],
    how: Reread,
    key: str | None = None,
    changes: Mapping[str, object] | None = None,
) -> Iterator[Sample | BadSample]:
    """What is at these places of a committed shard's input; reading ends behind the last of them.

    Args:
        cache, shard: what was committed, and of which shard.
        wanted: places in the shard, by `index` of a row.
        how: the input is read.
        key: of the sample that an error names; the shard if not given.
        changes: settings of `source` that are other than when the cache was made.

    Raises:
        InputChanged: the file is cut into other runs of rows than it was.
        StoreError: it cannot be read.
        ConfigError: it has no column any more that the settings name.
    """
    record = cache.commits[cache.commits.places_of(shard)[0]].shard
    source = how.source(cache.dataset.identity).model_copy(update=changes)
    opener = StoreOpener(how.s3)
    # Any version of the file will do: what is asked of a sample is that its images are still the same.
    shards = split_file(record.uri, record.size, "", source, opener)
    found = next((one for one in shards if one.name == shard), None)
    if found is None:
        raise InputChanged(
            key or shard, cache.uri, f"{record.uri} has other rows than the file that the cache was made from"
        )
    last = max(wanted, default=-1)
    for item in read_shard(found, source, opener, skip=lambda index: index not in wanted):
        yield item
        if item.index >= last:
            return


def _same_sample(cache: PrunedCache, row: dict[str, Any], sample: Sample | BadSample | None) -> Sample:
    hashes = [image["hash"] for image in row["images"]]
    if isinstance(sample, BadSample):
        cure = f"; {_PLACES}" if sample.reason in (Reason.IMAGE_MISSING, Reason.IMAGE_OUTSIDE) else ""
        message = f"it cannot be read again from its shard {row['shard']} ({sample.reason}: {sample.detail}){cure}"
        raise InputChanged(row["key"], cache.uri, message)
    if sample is None or [xxhash.xxh3_128_hexdigest(data) for data in sample.images] != hashes:
        message = f"its shard {row['shard']} no longer holds the image that it was made from"
        raise InputChanged(row["key"], cache.uri, message)
    return sample
