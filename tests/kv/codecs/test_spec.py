"""A codec's settings: presets and changes resolve to all parameters, and what is wrong is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trio_ray.kv.codecs.registry import codec_types, full_spec, presets


@pytest.mark.parametrize("name", sorted({*codec_types(), *presets()} - {"transform"}))
def test_a_name_resolves_to_all_parameters_and_these_to_themselves(name: str) -> None:
    spec = full_spec(name)
    assert set(spec) == set(codec_types()[spec["name"]].Settings.model_fields)
    assert full_spec(json.loads(json.dumps(spec))) == spec


def test_a_mapping_changes_a_preset() -> None:
    assert full_spec({"name": "int2", "values": 4}) == {**full_spec("int2"), "values": 4}


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("zip", "'zip' is none of int"), ({"keys": 2}, "name None"), ({"name": "int4", "keys": 3}, "keys"),
        ({"name": "int4", "group": 32}, "group"), ({"name": "raw", "zstd": 99}, "zstd"),
        ({"name": "int4", "sinks": -1}, "sinks"), ({"name": "transform"}, "basis"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_named(choice: str | dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        full_spec(choice)
