"""Keys of records."""

from __future__ import annotations

import pytest

from trio_ray.config import SourceConfig
from trio_ray.source.record import key_of
from trio_ray.source.rejection import Rejected


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"id": "i", "question_id": 3, "key": "k"}, "k"),
        ({"id": "i", "question_id": 3}, "3"),
        ({"id": "i", "question_id": None}, "i"),
        ({"id": 0}, "0"),
        ({"id": 12.0}, "12"),
        ({"id": "", "key": ["x"], "question_id": True}, "@7"),
        ({"id": float("nan")}, "@7"),
        ({}, "@7"),
        ({"id": "@7"}, "@@7"),
        ({"id": "@@7"}, "@@@7"),
        ({"id": "@x"}, "@x"),
        ({"id": "half \ud83d pair"}, "half \\ud83d pair"),
    ],
)
def test_the_first_usable_field_is_the_key_and_else_the_rows_number(record: dict[str, object], wanted: str) -> None:
    assert key_of(record, SourceConfig(), "d/a.b.parquet", 7) == wanted


def test_a_chosen_key_column_is_not_replaced_by_another() -> None:
    config = SourceConfig(key_column="uid")
    assert key_of({"id": "i", "uid": 5}, config, "a", 7) == "5"
    with pytest.raises(Rejected, match=r"uid.*The record has: id"):
        key_of({"id": "i"}, config, "a", 7)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json", "tar", "tar.gz"])
def test_file_and_row_are_a_key_for_ids_that_repeat(ending: str) -> None:
    config = SourceConfig(keys="row")
    assert key_of({"id": "i"}, config, f"s3://b/x/mix_v1.5-00001.{ending}", 7) == "mix_v1.5-00001@7"
