"""A codec's settings: presets and changes resolve to all parameters, and what is wrong is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from trio_ray.kv.codecs.spec import FAMILIES, PRESETS, IntegerSpec, full_spec, parse_spec


@pytest.mark.parametrize("name", sorted({*FAMILIES, *PRESETS} - {"transform"}))
def test_a_name_resolves_to_all_parameters_and_these_to_themselves(name: str) -> None:
    spec = full_spec(name)
    assert set(spec) == set(FAMILIES[spec["name"]].model_fields)
    assert full_spec(json.loads(json.dumps(spec))) == spec


def test_a_mapping_changes_a_preset() -> None:
    assert full_spec({"name": "int2", "values": 4}) == {**full_spec("int2"), "values": 4}


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("zip", "'zip' is none of fp8"), ({"keys": 2}, "name None"), ({"name": "int4", "keys": 1}, "keys"),
        ({"name": "int4", "group": 32}, "group"), ({"name": "fp8", "group": 33}, "group"),
        ({"name": "raw", "zstd": 99}, "zstd"), ({"name": "raw", "first_segment": "none"}, "first_segment"),
        ({"name": "int4", "layers": {"x": {}}}, "'x' must be a layer"),
        ({"name": "int4", "layers": {"0-4": {}, "4": {}}}, "no other entry covers"),
        ({"name": "int4", "layers": {"5-4": {}}}, "'5-4'"), ({"name": "int4", "layers": {"0": {"keys": 99}}}, "keys"),
        ({"name": "int4", "sinks": -1}, "sinks"), ({"name": "int4", "layers": {0: {}, "0": {}}}, "twice"),
        ({"name": "int4", "layers": {-1: {}}}, "'-1' must be a layer"), ({"name": "int4", "layers": 3}, "layers"),
        ({"name": "int4", "layers": {True: {}}}, "layers"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_named(choice: str | dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        full_spec(choice)


def test_a_layer_may_be_a_number_as_yaml_reads_it_and_is_stored_as_text() -> None:
    given = yaml.safe_load("{name: int2, layers: {0: {keys: 4}, 3-5: {values: 8}}}")
    assert full_spec(given) == full_spec({"name": "int2", "layers": {"0": {"keys": 4}, "3-5": {"values": 8}}})
    assert list(full_spec(given)["layers"]) == ["0", "3-5"]


def test_layers_without_an_entry_have_the_common_widths() -> None:
    spec = parse_spec({"name": "int", "keys": 3, "layers": {"0": {"keys": 2, "values": 2}, "4-6": {"values": 8}}})
    assert isinstance(spec, IntegerSpec)
    assert [spec.bits_of(layer) for layer in (0, 1, 4, 6, 7)] == [(2, 2), (3, 4), (3, 8), (3, 8), (3, 4)]
