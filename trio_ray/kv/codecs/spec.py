"""What a codec is told: its name and parameters as they stand in a cache's identity and in every prefix's header."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

Bits = Literal[2, 3, 4, 5, 6, 7, 8]
Group = Literal[32, 64, 128]

_LAYERS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


class CodecSpec(BaseModel):
    """What every codec has. Unknown keys are errors; values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    first_segment: Literal["all", "kept"] = Field(
        "all",
        description="Rows stored of the layers before the first prune point: all, or of the image rows those alone "
        "that this prune point keeps.",
    )
    zstd: int = Field(
        1,
        ge=0,
        le=19,
        description="Level of the lossless stage; 0 leaves it out. At 1 a GPU does it for what it codes, by Huffman "
        "codes alone.",
    )


class RawSpec(CodecSpec):
    """Keys and values bit for bit."""

    name: Literal["raw"] = "raw"


class Fp8Spec(CodecSpec):
    """Eight-bit floats (e4m3), one scale a row, head and group of channels."""

    name: Literal["fp8"] = "fp8"
    group: Group = Field(64, description="Channels that share a scale.")


class LayerBits(BaseModel):
    """Other widths for some layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: Bits | None = Field(None, description="Bits a key element.")
    values: Bits | None = Field(None, description="Bits a value element.")


class IntegerSpec(CodecSpec):
    """Integers on a grid of their own for each group: keys by channel, values by row.

    Groups are large by default: behind zstd a coarser grid that a few outliers widen costs less than more grids do.
    """

    name: Literal["int"] = "int"
    keys: Bits = Field(4, description="Bits a key element.")
    values: Bits = Field(4, description="Bits a value element.")
    key_group: Group = Field(128, description="Consecutive rows of a channel that share a grid.")
    value_group: Group = Field(128, description="Channels of a row that share a grid.")
    protected: Literal["raw"] | Bits = Field(
        8, description="Bits of text rows and sink rows, keys and values alike; 'raw' leaves them as they are."
    )
    sinks: int = Field(
        4, ge=0, le=1024, description="Image rows among the first this many rows of a prompt are protected too."
    )
    layers: dict[str, LayerBits] = Field(
        default_factory=dict, description="Widths by layer, as '0' or '10-31', where they differ from keys and values."
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _numbers_are_layers(cls, layers: object) -> object:
        """YAML reads `0:` as a number."""
        if not isinstance(layers, Mapping):
            return layers
        if len({str(name) for name in layers}) < len(layers):
            raise ValueError("names a layer twice, as a number and as text")
        return {str(name) if type(name) is int else name: bits for name, bits in layers.items()}

    @field_validator("layers")
    @classmethod
    def _layers_are_numbers_or_ranges(cls, layers: dict[str, LayerBits]) -> dict[str, LayerBits]:
        taken: set[int] = set()
        for name in layers:
            span = set(_layer_range(name))
            if not span or span & taken:
                raise ValueError(f"{name!r} must be a layer ('0') or a range ('10-31') that no other entry covers")
            taken |= span
        return layers

    def bits_of(self, layer: int) -> tuple[int, int]:
        """Bits of the keys and of the values of a layer."""
        for name, bits in self.layers.items():
            if layer in _layer_range(name):
                return bits.keys or self.keys, bits.values or self.values
        return self.keys, self.values


class TransformSpec(CodecSpec):
    """Components of a calibrated basis, with one step for all."""

    name: Literal["transform"] = "transform"
    basis: str = Field(
        min_length=1, description="The calibrated basis: its xxh3-128; in a job's settings its path or s3:// URI."
    )


def _layer_range(name: str) -> range:
    match = _LAYERS.fullmatch(name)
    return range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)


FAMILIES: dict[str, type[CodecSpec]] = {
    "raw": RawSpec,
    "fp8": Fp8Spec,
    "int": IntegerSpec,
    "transform": TransformSpec,
}
"""Codec name -> what it is told."""

PRESETS: dict[str, dict[str, Any]] = {
    "int8": {"name": "int", "keys": 8, "values": 8},
    "int4": {"name": "int", "keys": 4, "values": 4},
    "int3": {"name": "int", "keys": 3, "values": 3},
    "int2": {"name": "int", "keys": 2, "values": 2},
}
"""Names for common settings; a codec's own name stands for its defaults."""


def full_spec(choice: str | Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a codec, as JSON, from a name, or from a mapping that begins with `name` and changes some.

    Raises:
        ValueError: unknown name or parameter, or a value out of range; says which.
    """
    return parse_spec(choice).model_dump(mode="json")


def parse_spec(choice: str | Mapping[str, Any]) -> CodecSpec:
    """The same as an object. Raises `ValueError` likewise."""
    given = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = given.get("name")
    if not isinstance(name, str) or name not in FAMILIES | PRESETS:
        raise ValueError(f"name {name!r} is none of {', '.join(sorted({*FAMILIES, *PRESETS}))}")
    preset = PRESETS.get(name, {})
    given = {**given, **{key: value for key, value in preset.items() if key == "name" or key not in given}}
    try:
        return FAMILIES[given["name"]].model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{field}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})") from None
