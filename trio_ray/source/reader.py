"""A shard's samples, in order, whatever its format: here the promises are kept that hold for all formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from trio_ray.config import SourceConfig
from trio_ray.source.conversation import Exchange, exchanges
from trio_ray.source.image_files import ImagePlaces, read_images
from trio_ray.source.json_records import read_json_records
from trio_ray.source.markers import place_images
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
        # `passed` is called between two rows, when `index` is that of the row to come.
        rows = read_rows(shard, file, config, opener, passed=lambda: skip(index))
        try:
            if shard.size == 0:
                raise ShardDamaged(Reason.SHARD_TRUNCATED, "the file is empty: it has no bytes at all")
            for row in rows:
                for item in _items(row, index, shard, config, opener, taken, skip):
                    if item is not None:
                        yield item
                    index += 1
        except ShardDamaged as damage:
            if not skip(index):
                yield BadSample(SHARD_KEY, index, damage.reason, damage.detail)


def read_rows(
    shard: Shard, file: BinaryIO, config: SourceConfig, opener: Opener, passed: Callable[[], bool]
) -> Iterator[Row]:
    """The rows of an opened shard, in order, whatever its format.

    Args:
        shard: from `split_file`.
        file: the shard's file, seekable.
        config: how the shard's fields are named.
        opener: reads the images that rows name by path.
        passed: whether the images of the next row will not be asked for.

    Raises:
        ShardDamaged: where nothing more can be read.
        StoreError: the store failed.
        ConfigError: a Parquet file lacks a column that the settings name.
    """
    if shard.format == "webdataset":
        return read_webdataset(file, shard.uri, config, passed)
    if shard.format == "parquet":
        return read_parquet(shard, file, config, opener)
    return read_json_records(shard, file, config, opener)


def _items(
    row: Row,
    index: int,
    shard: Shard,
    config: SourceConfig,
    opener: Opener,
    taken: set[str],
    skip: Callable[[int], bool],
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
                if isinstance(row.record, Rejected):
                    raise row.record
                if repeated:
                    raise _duplicate(config)
                if isinstance(exchange, Rejected):
                    raise exchange
                if images is None and not exchange.images:
                    images = _images(row)
                own = _own_images(exchange, shard, config, opener) if exchange.images else images
                item = _sample(key, position, row.record, exchange, own)
            except Rejected as fault:
                silent = fault.reason == Reason.TEXT_ONLY and config.text_only == "skip"
                item = BadSample(key, position, fault.reason, fault.detail, silent)
        yield item


def _duplicate(config: SourceConfig) -> Rejected:
    cure = "" if config.keys == "row" else "; where ids repeat by design, set source.keys: row"
    return Rejected(Reason.DUPLICATE_KEY, f"an earlier sample of this shard has the same key{cure}")


def _images(row: Row) -> tuple[bytes, ...] | Rejected:
    """A row's images, or what is wrong with them, which is then wrong with every sample of the row."""
    try:
        return row.images()
    except Rejected as fault:
        return fault


def _own_images(exchange: Exchange, shard: Shard, config: SourceConfig, opener: Opener) -> tuple[bytes, ...]:
    """The images that the turns carry themselves."""
    return read_images(list(exchange.images), ImagePlaces.of(shard.uri, config), opener)


def _sample(
    key: str,
    index: int,
    record: Mapping[str, object],
    exchange: Exchange,
    images: tuple[bytes, ...] | Rejected | None,
) -> Sample:
    if isinstance(images, Rejected):
        raise images
    turns, placed = place_images(exchange, images or (), record)
    if not all(placed):
        raise Rejected(Reason.IMAGE_EMPTY, "an image of zero bytes")
    return Sample(key, index, placed, turns, exchange.answer)
