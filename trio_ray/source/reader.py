"""A shard's samples, in order, whatever its format: here the promises are kept that hold for all formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trio_ray.config import SourceConfig
from trio_ray.source.conversation import IMAGE_MARKER, Exchange, exchanges
from trio_ray.source.jsonl import read_jsonl
from trio_ray.source.parquet import read_parquet
from trio_ray.source.record import Row, storable
from trio_ray.source.rejection import Rejected, ShardDamaged
from trio_ray.source.sample import BadSample, Opener, Reason, Sample, Shard
from trio_ray.source.webdataset import read_webdataset

SHARD_KEY = "<shard>"
"""Key of the quarantine row that tells where and how a shard is damaged."""


def read_shard(
    shard: Shard, config: SourceConfig, opener: Opener, skip: Callable[[int], bool] = lambda index: False
) -> Iterator[Sample | BadSample]:
    """Read a shard. The same bytes always give the same sequence, with the indices 0, 1, 2, ...

    One bad sample never costs another. A shard that is damaged yields the samples before the damage, then one
    `BadSample` with the key SHARD_KEY as its last item.

    Args:
        shard: from `split_file`.
        config: how the shard's fields are named.
        opener: reads the shard and the images that it names by path.
        skip: tells of an index whether that item is not wanted. Such items are passed without reading their
            images where the format allows it, and are not yielded; their keys still count as taken.

    Raises:
        StoreError: the store failed; what was yielded before is sound. `ObjectDamaged`: the file was replaced since
            the shard was planned.
        ConfigError: a Parquet file lacks a column that the settings name.
    """
    index = 0
    taken: set[str] = set()
    with opener.open(shard.uri, shard.etag or None) as file:
        if shard.format == "webdataset":
            # Called between two rows, when `index` is that of the row to come.
            rows = read_webdataset(file, config, passed=lambda: skip(index))
        elif shard.format == "parquet":
            rows = read_parquet(shard, file, config, opener)
        else:
            rows = read_jsonl(shard, file, config, opener)
        try:
            for row in rows:
                for item in _items(row, index, config, taken, skip):
                    if item is not None:
                        yield item
                    index += 1
        except ShardDamaged as damage:
            if not skip(index):
                yield BadSample(SHARD_KEY, index, damage.reason, damage.detail)


def _items(
    row: Row, index: int, config: SourceConfig, taken: set[str], skip: Callable[[int], bool]
) -> Iterator[Sample | BadSample | None]:
    """The items of a row, the first of which has `index`; None for one to skip.

    Only a wanted item reads the images.
    """
    images: tuple[bytes, ...] | Rejected | None = None
    asked = [("", row.record)] if isinstance(row.record, Rejected) else exchanges(row.record, config)
    for position, (suffix, exchange) in enumerate(asked, index):
        key = storable(row.key) + suffix
        repeated = key in taken
        taken.add(key)
        item: Sample | BadSample | None = None
        if not skip(position):
            try:
                if repeated:
                    raise Rejected(Reason.DUPLICATE_KEY, "an earlier sample of this shard has the same key")
                if isinstance(exchange, Rejected):
                    raise exchange
                images = _images(row) if images is None else images
                item = _sample(key, position, exchange, images)
            except Rejected as fault:
                item = BadSample(key, position, fault.reason, fault.detail)
        yield item


def _images(row: Row) -> tuple[bytes, ...] | Rejected:
    """A row's images, or what is wrong with them, which is then wrong with every sample of the row."""
    try:
        images = row.images()
    except Rejected as fault:
        return fault
    if not images:
        return Rejected(Reason.IMAGE_MISSING, "the sample has no image")
    if not all(images):
        return Rejected(Reason.IMAGE_EMPTY, "an image of zero bytes")
    return images


def _sample(key: str, index: int, exchange: Exchange, images: tuple[bytes, ...] | Rejected) -> Sample:
    if isinstance(images, Rejected):
        raise images
    markers = sum(turn.text.count(IMAGE_MARKER) for turn in exchange.turns)
    if markers not in (0, len(images)):
        raise Rejected(Reason.IMAGE_COUNT, f"{markers} {IMAGE_MARKER} markers for {len(images)} images")
    return Sample(key, index, images, exchange.turns, exchange.answer)
