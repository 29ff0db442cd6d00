"""Records that notice every change to themselves."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ray.errors import ObjectDamaged
from trio_ray.store.record import dump_record, load_record

TEXT = st.text(st.characters(codec="utf-8"))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
RECORDS = st.dictionaries(TEXT.filter(lambda name: name != "checksum"), VALUES, max_size=4)


@given(RECORDS)
def test_a_record_comes_back_as_it_was(fields: dict[str, object]) -> None:
    assert load_record(dump_record(fields), "uri") == fields


@given(RECORDS, st.data())
def test_any_changed_byte_is_damage(fields: dict[str, object], data: st.DataObject) -> None:
    sound = dump_record(fields)
    position = data.draw(st.integers(0, len(sound) - 1))
    changed = bytearray(sound)
    changed[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ObjectDamaged, match="the-uri"):
        load_record(bytes(changed), "the-uri")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"3", b'{"a":1}', b"\xff", b"{" * 100_000, b"[" * 100_000, b"NaN"])
def test_what_is_no_record_is_damage_and_no_crash(data: bytes) -> None:
    with pytest.raises(ObjectDamaged):
        load_record(data, "uri")


def test_the_text_is_canonical_and_plain_json() -> None:
    data = dump_record({"b": [1, 2.5, "é"], "a": None})
    assert data == dump_record({"a": None, "b": [1, 2.5, "é"]})
    fields = json.loads(data)
    assert list(fields) == ["a", "b", "checksum"]
    assert b'"b":[1,2.5,"\xc3\xa9"]' in data
    with pytest.raises(ValueError, match="JSON"):
        dump_record({"a": float("nan")})
