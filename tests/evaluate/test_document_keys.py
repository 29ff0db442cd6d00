"""A benchmark's documents find their prefixes in a cache whose keys are rows of files, or are told why they cannot."""

from __future__ import annotations

import pytest

from trio_ray.config import SourceConfig
from trio_ray.errors import ConfigError
from trio_ray.evaluate.document_keys import DocumentKeys
from trio_ray.store.commits import ShardInput

SOURCE = SourceConfig(keys="row")


def shard(uri: str, rows: tuple[int, int] | None) -> ShardInput:
    return ShardInput(f"{uri.rpartition('/')[2]}-{rows}", uri, 1, "e", rows)


SPLIT = [
    shard("s3://b/test-00001-of-00002.parquet", (0, 3)),
    shard("s3://b/test-00000-of-00002.parquet", (4, 6)),
    shard("s3://b/test-00000-of-00002.parquet", (0, 4)),
]


def test_a_document_is_the_row_of_the_files_in_the_order_of_their_names() -> None:
    keys = DocumentKeys([*SPLIT, SPLIT[0]], SOURCE, 9)
    first, second = "test-00000-of-00002", "test-00001-of-00002"
    assert [keys.of(number)[0] for number in range(9)] == [
        *(f"{first}@{row}" for row in range(6)),
        *(f"{second}@{row}" for row in range(3)),
    ]
    assert [keys.of(number)[1] for number in (0, 3, 4, 5, 6)] == [
        SPLIT[2].name, SPLIT[2].name, SPLIT[1].name, SPLIT[1].name, SPLIT[0].name,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shards", "documents", "words"),
    [
        (SPLIT, 10, "9 rows, and the task's split has 10 documents"),
        (SPLIT[:2], 5, "lacks rows 0 to 3 of s3://b/test-00000-of-00002.parquet"),
        ([shard("a.tar", None)], 3, "no rows of a table"),
    ],
)
def test_a_cache_of_other_rows_is_refused(shards: list[ShardInput], documents: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DocumentKeys(shards, SOURCE, documents)
