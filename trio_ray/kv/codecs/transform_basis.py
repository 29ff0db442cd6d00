"""The calibrated basis of the transform codec, and its file.

All numbers that decide a stored byte are integers, so that every machine makes the same ones of them. The file is
safetensors: tensors `<group>.exponent`, `<group>.<kind>.<name>`, `cosine`, `sine`, and in the metadata, under
`trio_ray_basis`, a JSON header. Nothing of it is believed: header, types, shapes and ranges are checked before the
basis is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from trio_ray.kv.codecs.codec import CodecError
from trio_ray.kv.codecs.transform_bands import BANDS

BASIS_VERSION = 1
ENTRY = "trio_ray_basis"
KINDS = IMAGE, TEXT = ("image", "text")
"""Rows of either kind have components of their own."""

INPUT_LIMIT = 32767
ROTATION_BITS = 14
FOLD_BITS = 16
STEP_BITS = 32
MAX_FOLD = 1 << 24
MAX_MULTIPLIER = 1 << 24
MAX_CHANNELS = 1 << 17
"""Longest sum of products of a 16-bit and an 8-bit number that, split in two, stays within 32 bits."""


class BasisError(CodecError):
    """The bytes are not a basis that this version can use; the message names the field."""


@dataclass(frozen=True)
class Components:
    """The transform of one kind of rows: C channels, of each layer all keys, then all values, to R components.

    Attributes:
        counts: components in each band (`transform_bands`), from the first on; their sum is R.
        center: (C,) int32, what is taken from the integers of a row first.
        fold: (C,) int32, what a channel counts, times 2 ** -FOLD_BITS.
        matrix: (R, C) int8, the components.
        multiplier: (R,) int32, makes a sum of products a symbol, times 2 ** -STEP_BITS.
        offset: (means, R) int64, the sums of the mean rows. Row 0 is the mean of the kind; of text, the n-th row of the
            prompt has mean 1 + n of its own as long as it lies ahead of the image and there is one.
        mean: (means, C) float32, those rows themselves.
    """

    counts: tuple[int, ...]
    center: Tensor
    fold: Tensor
    matrix: Tensor
    multiplier: Tensor
    offset: Tensor
    mean: Tensor


@dataclass(frozen=True)
class Group:
    """A run of layers that are transformed together.

    Attributes:
        first_layer, layers: the run.
        exponent: (C,) int8. Keys and values times 2 ** exponent, rounded, are the integers that all begins with.
        image, text: components of the two kinds of rows.
    """

    first_layer: int
    layers: int
    exponent: Tensor
    image: Components
    text: Components

    @property
    def kinds(self) -> tuple[Components, Components]:
        """In the order of `KINDS`."""
        return self.image, self.text


@dataclass(frozen=True)
class Basis:
    """A calibrated basis.

    Attributes:
        model: fingerprint of the model that it was calibrated with, by what its files are for.
        kv_heads, head_dim: shape of a layer's keys and values.
        leads: text rows ahead of the image that have a mean of their own.
        rounding: what is added to a symbol's magnitude before its fraction is cut off, times 2 ** STEP_BITS.
        cosine, sine: (positions, head_dim / 2) int16, the rotary tables times 2 ** ROTATION_BITS.
        groups: in order, covering all layers.
        notes: how it was made, for people; read by nobody else.
    """

    model: dict[str, str]
    kv_heads: int
    head_dim: int
    leads: int
    rounding: int
    cosine: Tensor
    sine: Tensor
    groups: tuple[Group, ...]
    notes: dict[str, Any]


def write_basis(basis: Basis) -> bytes:
    """The file. The same basis gives the same bytes."""
    header = {
        "version": BASIS_VERSION,
        "model": basis.model,
        "kv_heads": basis.kv_heads,
        "head_dim": basis.head_dim,
        "leads": basis.leads,
        "rounding": basis.rounding,
        "groups": [
            {
                "first_layer": group.first_layer,
                "layers": group.layers,
                **{kind: list(part.counts) for kind, part in zip(KINDS, group.kinds, strict=True)},
            }
            for group in basis.groups
        ],
        "notes": basis.notes,
    }
    tensors = {"cosine": basis.cosine, "sine": basis.sine}
    for number, group in enumerate(basis.groups):
        tensors[f"{number}.exponent"] = group.exponent
        for kind, part in zip(KINDS, group.kinds, strict=True):
            tensors |= {f"{number}.{kind}.{name}": getattr(part, name).contiguous() for name in TENSORS}
    return safetensors.torch.save(tensors, {ENTRY: json.dumps(header, sort_keys=True)})


def read_basis(data: bytes) -> Basis:
    """A basis from its file.

    Raises:
        BasisError: it is none, or damaged, or of another version; names the field.
    """
    header = _read_header(data)
    version = header.get("version")
    if version != BASIS_VERSION:
        raise BasisError(f"basis: version {version!r}; this program reads {BASIS_VERSION}")
    _check_header(header)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BasisError(f"basis: not a whole safetensors file: {error}") from None
    _check_tensors(header, tensors)
    groups = tuple(
        Group(
            first_layer=entry["first_layer"],
            layers=entry["layers"],
            exponent=tensors[f"{number}.exponent"],
            image=_components(tensors, f"{number}.image", entry["image"]),
            text=_components(tensors, f"{number}.text", entry["text"]),
        )
        for number, entry in enumerate(header["groups"])
    )
    return Basis(
        model=header["model"],
        kv_heads=header["kv_heads"],
        head_dim=header["head_dim"],
        leads=header["leads"],
        rounding=header["rounding"],
        cosine=tensors["cosine"],
        sine=tensors["sine"],
        groups=groups,
        notes=header["notes"],
    )


TENSORS = {
    "center": torch.int32,
    "fold": torch.int32,
    "matrix": torch.int8,
    "multiplier": torch.int32,
    "offset": torch.int64,
    "mean": torch.float32,
}
"""The tensors of `Components`."""

HEADER = {field.name for field in fields(Basis)} - {"cosine", "sine"} | {"version"}


def _components(tensors: Mapping[str, Tensor], prefix: str, counts: list[int]) -> Components:
    return Components(tuple(counts), **{name: tensors[f"{prefix}.{name}"] for name in TENSORS})


def _read_header(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= size <= len(data) - 8:
        raise BasisError("basis: no safetensors file, or cut off")
    try:
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][ENTRY])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BasisError(f"basis: header cannot be read: {type(error).__name__} {error}") from None
    if not isinstance(header, dict):
        raise BasisError("basis: header is no object")
    return header


def _check_header(header: Mapping[str, Any]) -> None:
    if set(header) != HEADER:
        raise BasisError(f"basis: fields {', '.join(sorted(set(header) ^ HEADER))} missing or unknown")
    model, notes, groups = header["model"], header["notes"], header["groups"]
    if not isinstance(model, dict) or not all(isinstance(text, str) for text in model.values()):
        raise BasisError("basis: model is no fingerprint")
    if not isinstance(notes, dict):
        raise BasisError("basis: notes are no object")
    for name, most in {"kv_heads": 1 << 10, "head_dim": 1 << 12, "leads": 1 << 12, "rounding": 1 << STEP_BITS}.items():
        _check_number(name, header[name], 0 if name in ("leads", "rounding") else 1, most)
    if header["head_dim"] % 2:
        raise BasisError(f"basis: head_dim {header['head_dim']} is odd")
    if not isinstance(groups, list) or not groups:
        raise BasisError("basis: groups are no list, or empty")
    layer = 0
    for number, entry in enumerate(groups):
        _check_group(f"groups.{number}", entry, layer, 2 * header["kv_heads"] * header["head_dim"])
        layer += entry["layers"]


def _check_group(name: str, entry: object, layer: int, layer_channels: int) -> None:
    if not isinstance(entry, dict) or set(entry) != {"first_layer", "layers", *KINDS}:
        raise BasisError(f"basis: {name} is not as written")
    _check_number(f"{name}.first_layer", entry["first_layer"], layer, layer)
    _check_number(f"{name}.layers", entry["layers"], 1, MAX_CHANNELS // layer_channels)
    for kind in KINDS:
        counts = entry[kind]
        if not isinstance(counts, list) or len(counts) != len(BANDS):
            raise BasisError(f"basis: {name}.{kind} must be {len(BANDS)} numbers")
        for count in counts:
            _check_number(f"{name}.{kind}", count, 0, MAX_CHANNELS)
        channels = entry["layers"] * layer_channels
        if not sum(counts) <= channels:
            raise BasisError(f"basis: {name}.{kind} has {sum(counts)} components of {channels} channels")


def _check_number(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise BasisError(f"basis: {name} {value!r} is not a whole number from {least} to {most}")


def _check_tensors(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for number, entry in enumerate(header["groups"]):
        channels = entry["layers"] * 2 * header["kv_heads"] * header["head_dim"]
        expected[f"{number}.exponent"] = (torch.int8, (channels,))
        for kind, means in (("image", 1), ("text", 1 + header["leads"])):
            components = sum(entry[kind])
            sizes = {
                "center": (channels,),
                "fold": (channels,),
                "matrix": (components, channels),
                "multiplier": (components,),
                "offset": (means, components),
                "mean": (means, channels),
            }
            expected |= {f"{number}.{kind}.{name}": (dtype, sizes[name]) for name, dtype in TENSORS.items()}
    positions = len(tensors["cosine"]) if "cosine" in tensors and tensors["cosine"].dim() else 0
    expected |= {name: (torch.int16, (max(positions, 1), header["head_dim"] // 2)) for name in ("cosine", "sine")}
    for name in sorted({*expected, *tensors}):
        tensor = tensors.get(name)
        found = (tensor.dtype, tuple(tensor.shape)) if tensor is not None else None
        if found != expected.get(name):
            raise BasisError(f"basis: tensor {name!r} is {found}, not {expected.get(name)}")
    for name, tensor in tensors.items():
        _check_range(name, tensor)


def _check_range(name: str, tensor: Tensor) -> None:
    """The ranges within which no sum or product overflows."""
    kind = name.rpartition(".")[2]
    if kind == "mean":
        if not tensor.isfinite().all():
            raise BasisError(f"basis: tensor {name!r} is not finite")
        return
    least, most = {
        "center": (-INPUT_LIMIT, INPUT_LIMIT),
        "fold": (1, MAX_FOLD),
        "multiplier": (1, MAX_MULTIPLIER),
        "offset": (-(1 << 38), 1 << 38),
        "exponent": (-64, 64),
        "matrix": (-127, 127),
    }.get(kind, (-(1 << ROTATION_BITS), 1 << ROTATION_BITS))
    if tensor.numel() and not (least <= int(tensor.min()) and int(tensor.max()) <= most):
        raise BasisError(f"basis: tensor {name!r} is not within {least} to {most}")
