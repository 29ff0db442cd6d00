"""Rows of a Parquet question file with all their fields but the images, which answering from a cache never needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from trio_ray.config import SourceConfig
from trio_ray.source.record import Row, key_of, row_key
from trio_ray.source.rejection import Rejected, ShardDamaged
from trio_ray.source.sample import Reason, Shard

_BATCH_ROWS = 1024


def parquet_records(shard: Shard, file: BinaryIO, config: SourceConfig) -> Iterator[Row]:
    """The rows of a shard, keyed as `source.parquet` keys them; no column that holds bytes is read.

    Raises:
        ShardDamaged: it cannot be read (on).
    """
    try:
        table = pq.ParquetFile(pa.PythonFile(file, mode="r"), page_checksum_verification=True)
        columns = [field.name for field in table.schema_arrow if not _holds_bytes(field.type)]
        first, stop = shard.rows or (0, table.metadata.num_rows)
        number = 0
        for batch in table.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            for record in batch.to_pylist():
                if first <= number < stop:
                    yield _row(record, number, shard.uri, config)
                number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ShardDamaged(Reason.SHARD_UNREADABLE, f"not readable as Parquet: {error}") from None


def _row(record: Mapping[str, object], number: int, uri: str, config: SourceConfig) -> Row:
    try:
        return Row(key_of(record, config, uri, number), record, tuple)
    except Rejected as fault:
        return Row(row_key(config, uri, number), fault, tuple)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(number).type) for number in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
