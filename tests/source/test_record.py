"""Keys of records."""

from __future__ import annotations

import pytest

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
        ({"id": "", "key": ["x"], "question_id": True}, "7"),
        ({"id": float("nan")}, "7"),
        ({}, "7"),
        ({"id": "half \ud83d pair"}, "half \\ud83d pair"),
    ],
)
def test_the_first_usable_field_is_the_key_and_else_the_rows_number(record: dict[str, object], wanted: str) -> None:
    assert key_of(record, None, 7) == wanted


def test_a_chosen_key_column_is_not_replaced_by_another() -> None:
    assert key_of({"id": "i", "uid": 5}, "uid", 7) == "5"
    with pytest.raises(Rejected, match="uid"):
        key_of({"id": "i"}, "uid", 7)
