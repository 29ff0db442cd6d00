"""Parquet with images in a column: Hugging Face's `{bytes, path}`, plain binary, paths, or lists of these."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from trio_ray.config import SourceConfig, template_fields
from trio_ray.errors import ConfigError
from trio_ray.source.conversation import answer_fields, text_fields
from trio_ray.source.image_files import ImagePlaces, read_images
from trio_ray.source.options import image_name, matching
from trio_ray.source.record import KEY_FIELDS, Row, key_of, row_key
from trio_ray.source.rejection import Rejected, ShardDamaged, listed
from trio_ray.source.sample import Opener, Reason, Shard

# A column chunk may be gigabytes of images: it is read in pieces of this size and decoded few rows at a time.
_READ_BYTES = 1 << 22
_TEXT_ROWS = 256
_IMAGE_ROWS = 8

_SMALL_GROUP_BYTES = 16 << 20
"""A row group whose columns have no more bytes may be cut into several runs: each but the first reads past the rows of
others, 8 MiB on average."""


def runs_of_rows(uri: str, file: BinaryIO, config: SourceConfig, images: bool = True) -> list[tuple[int, int]]:
    """Half-open runs of rows that a Parquet file is cut into, after a check that it has the columns that the settings
    name.

    A row group can be read from its beginning alone. So a run is made of whole row groups, as many as have no more than
    `config.rows_per_shard` rows together, or one that has more. A larger one is cut only where its columns are small,
    such as paths of images: then reading past some of its rows costs nothing, and more replicas share it.

    Args:
        uri: of the file.
        file: the same, open.
        config: names the columns, and the rows of a run.
        images: whether the image column is needed too.

    Raises:
        ConfigError: a column is not there; names the setting.
        ShardDamaged: there is no readable footer.
    """
    table = _open(file)
    columns = _columns(uri, table, config, images)
    wanted = {*columns.images, *columns.text}
    runs: list[tuple[int, int]] = []
    first = start = 0
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        beyond = start + group.num_rows
        if beyond - first > config.rows_per_shard and first < start:
            runs.append((first, start))
            first = start
        if group.num_rows > config.rows_per_shard and _stored_bytes(group, wanted) <= _SMALL_GROUP_BYTES:
            while beyond - first > config.rows_per_shard:
                runs.append((first, first + config.rows_per_shard))
                first += config.rows_per_shard
        start = beyond
    if first < start or not runs:
        runs.append((first, start))
    return runs


def _stored_bytes(group: pq.RowGroupMetaData, columns: Container[str]) -> int:
    """Bytes in the file of these columns of a row group."""
    chunks = (group.column(number) for number in range(group.num_columns))
    return sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns)


def read_parquet(shard: Shard, file: BinaryIO, config: SourceConfig, opener: Opener) -> Iterator[Row]:
    """The rows of a shard, row group by row group.

    The images of a row group are read only if one of them is asked for; those before it are then read past.

    Raises:
        ConfigError: a column is not there; names the setting.
        ShardDamaged: an unreadable footer or page, or fewer rows than when the file was split.
    """
    table = _open(file)
    columns = _columns(shard.uri, table, config)
    places = ImagePlaces.of(shard.uri, config)
    first, stop = shard.rows or (0, table.metadata.num_rows)
    if stop > table.metadata.num_rows:
        raise ShardDamaged(
            Reason.SHARD_TRUNCATED,
            f"{table.metadata.num_rows} rows where there were {stop} when it was split",
        )
    start = 0
    for group in range(table.num_row_groups):
        end = start + table.metadata.row_group(group).num_rows
        if start < stop and end > first:
            images = _ForwardCells(_batches(table, group, columns.images, _IMAGE_ROWS), start)
            for number, cells in _rows_of(table, group, columns.text, start):
                if number >= stop:
                    break
                if number >= first:
                    read = partial(_images, images, number, columns.images, places, opener)
                    yield _row(number, cells, shard.uri, config, read, places, opener)
        start = end


@dataclass(frozen=True, slots=True)
class _Columns:
    """The image columns in their order, and those that keys, prompts and answers may come from."""

    images: list[str]
    text: list[str]


def _columns(uri: str, table: pq.ParquetFile, config: SourceConfig, images: bool = True) -> _Columns:
    present: Sequence[str] = table.schema_arrow.names

    def check(field: str, wanted: str | None) -> None:
        if wanted is not None and not matching(present, wanted):
            raise ConfigError(f"source.{field}", f"{uri} has no column {wanted!r}; it has: {listed(present)}")

    if images and config.image_name is None:
        check("image_column", config.image_column)
    for name in template_fields(config.image_name or "") if images else ():
        check("image_name", name)
    for field in ("text_column", "answer_column", "key_column"):
        check(field, getattr(config, field))
    for name in config.option_columns or ():
        check("option_columns", name)
    prompts = [name for name in text_fields(config) if name in present]
    if not prompts and config.needs_text:
        field = "text_column" if config.text_template is None else "text_template"
        raise ConfigError(
            f"source.{field}", f"{uri} has none of {listed(text_fields(config))}; its columns are: {listed(present)}"
        )
    keys = KEY_FIELDS if config.key_column is None else (config.key_column,)
    named = template_fields(config.image_name or "")
    _refuse_twins(uri, present, [*prompts, *keys, *answer_fields(config), *named])
    others = [name for name in (*keys, *answer_fields(config), *named) if name in present]
    pictures = [] if config.image_name else matching(present, config.image_column)
    _refuse_twins(uri, present, pictures)
    return _Columns(pictures, list(dict.fromkeys(prompts + others)))


def _refuse_twins(uri: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise `ConfigError` if a column that is read is there twice: nobody knows which of them is meant."""
    twin = next((name for name in wanted if present.count(name) > 1), None)
    if twin is not None:
        raise ConfigError("input", f"{uri} has {present.count(twin)} columns {twin!r}; rename all but one of them")


class _ForwardCells:
    """The cells of some columns of a row group, forward only; nothing is decoded before one is asked for."""

    def __init__(self, batches: Iterator[pa.RecordBatch], first: int) -> None:
        self._batches = batches
        self._batch: pa.RecordBatch | None = None
        self._start = self._end = first

    def at(self, number: int, column: int) -> object:
        """The cell of row `number` of the file."""
        while number >= self._end:
            self._batch = next(self._batches)
            self._start, self._end = self._end, self._end + self._batch.num_rows
        assert self._batch is not None, "rows are asked for in order"
        return self._batch.column(column)[number - self._start].as_py()


def _rows_of(
    table: pq.ParquetFile, group: int, columns: list[str], first: int
) -> Iterator[tuple[int, dict[str, pa.Scalar]]]:
    """The rows of a row group by their number in the file; without any column to read they are empty."""
    if not columns:
        yield from ((first + number, {}) for number in range(table.metadata.row_group(group).num_rows))
    for batch in _batches(table, group, columns, _TEXT_ROWS) if columns else ():
        for index in range(batch.num_rows):
            yield first + index, {name: batch.column(name)[index] for name in batch.schema.names}
        first += batch.num_rows


def _row(
    number: int,
    cells: Mapping[str, pa.Scalar],
    uri: str,
    config: SourceConfig,
    images: partial[tuple[bytes, ...]],
    places: ImagePlaces,
    opener: Opener,
) -> Row:
    key = row_key(config, uri, number)
    record: dict[str, object] = {}
    try:
        for name, cell in cells.items():
            try:
                record[name] = cell.as_py()
            except UnicodeDecodeError as error:
                raise Rejected(Reason.TEXT_NOT_UTF8, f"column {name}: {error}; store the text as UTF-8") from None
        key = key_of(record, config, uri, number)
    except Rejected as fault:
        return Row(key, fault, tuple)
    if config.image_name is not None:
        images = partial(_named_image, config.image_name, record, places, opener)
    return Row(key, record, images)


def _named_image(template: str, record: dict[str, object], places: ImagePlaces, opener: Opener) -> tuple[bytes, ...]:
    return read_images(image_name(template, record), places, opener)


def _images(
    cells: _ForwardCells, number: int, columns: list[str], places: ImagePlaces, opener: Opener
) -> tuple[bytes, ...]:
    images: list[bytes] = []
    for column in range(len(columns)):
        try:
            cell = cells.at(number, column)
        except UnicodeDecodeError as error:
            raise Rejected(Reason.IMAGE_MISSING, f"an image's path is not UTF-8: {error}") from None
        images += read_images(cell, places, opener)
    return tuple(images)


def _open(file: BinaryIO) -> pq.ParquetFile:
    magic = file.read(4)
    try:
        with _damage_named():
            return pq.ParquetFile(
                pa.PythonFile(file, mode="r"),
                buffer_size=_READ_BYTES,
                pre_buffer=False,  # it would hold all columns of a row group in memory
                page_checksum_verification=True,
            )
    except ShardDamaged as damage:
        if magic == b"PAR1":  # the footer comes last, so a cut file has a sound beginning
            raise ShardDamaged(Reason.SHARD_TRUNCATED, damage.detail) from None
        raise


def _batches(table: pq.ParquetFile, group: int, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    with _damage_named():
        batches = table.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
    while True:
        with _damage_named():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn Arrow's errors into `ShardDamaged`. A `StoreError` from the file comes through Arrow as it is."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ShardDamaged(Reason.SHARD_UNREADABLE, f"not readable as Parquet: {error}") from None
