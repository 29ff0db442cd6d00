"""Integers on a grid of their own for each group: keys by channel over some rows, values by row over some channels.

Keys have channels far larger than the rest, values have not; so each is grouped along what it has in common (KIVI,
arXiv 2402.02750). Text rows and sink rows, which every later token looks at, are coded apart with more bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from trio_ray.kv.batch import SegmentBatch, SegmentShape
from trio_ray.kv.codecs.arithmetic import arithmetic
from trio_ray.kv.codecs.classes import RowClass, protected_rows, split_rows
from trio_ray.kv.codecs.codec import Codec, CodecError, CodedSegments, SegmentToRestore
from trio_ray.kv.codecs.quantise import RowGroups, codes_per_byte
from trio_ray.kv.codecs.spec import CodecSpec
from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.tensors import move_together

Bits = Literal[2, 4, 8]
Group = Literal[32, 64, 128]


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


GRID = ".grid"
"""Ends the name of a tensor of grids."""


class Piece(NamedTuple):
    """The keys or the values of one class of rows in a segment.

    Attributes:
        name: of its tensor of codes; `.grid` behind it for that of the grids.
        is_key: keys (groups along rows) or values (groups along channels).
        is_protected: protected rows or the other image rows.
        bits: width; None leaves them as they are.
    """

    name: str
    is_key: bool
    is_protected: bool
    bits: int | None


@dataclass(frozen=True)
class Integer(Codec):
    """Per piece codes, (rows, layers, kv_heads, bytes) uint8, and grids, int32 (float16 zero and scale, `quantise`):
    of keys (groups, layers, kv_heads, head_dim), of values (rows, layers, kv_heads, groups).
    """

    Settings: ClassVar[type[CodecSpec]] = IntegerSpec
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"int{bits}": {"name": "int", "keys": bits, "values": bits} for bits in (8, 4, 2)
    }

    settings: IntegerSpec

    @property
    def name(self) -> str:
        """`int4`, or `int2-4` where keys have 2 bits and values 4."""
        keys, values = self.settings.keys, self.settings.values
        return f"int{keys}" if keys == values else f"int{keys}-{values}"

    def encode(self, batch: SegmentBatch) -> CodedSegments:
        """See `Codec`."""
        shapes = SegmentShape.of(batch)
        self._check(shapes[0])
        classes = self._classes(batch.text, shapes)
        use = arithmetic(batch.keys.device)
        tensors: dict[str, Tensor] = {}
        counts: dict[str, tuple[int, ...]] = {}
        for piece in self._pieces:
            source = batch.keys if piece.is_key else batch.values
            members = classes[piece.is_protected]
            grid, counts[piece.name] = piece.name + GRID, members.rows.counts
            if piece.bits is None:
                tensors[piece.name] = source.transpose(0, 1).index_select(0, members.rows.rows)
            elif piece.is_key:
                tensors[piece.name], tensors[grid] = use.compress_channels(source, members, piece.bits)
                counts[grid] = members.counts
            else:
                group = self._value_group(source.shape[-1])
                tensors[piece.name], tensors[grid] = use.compress_vectors(source, members.rows.rows, group, piece.bits)
                counts[grid] = members.rows.counts
        return CodedSegments(tensors, counts)

    def layout(self, shape: SegmentShape) -> dict[str, TensorSpec]:
        """See `Codec`."""
        self._check(shape)
        protected = protected_rows(shape, self.settings.sinks)
        layers, heads, dim = shape.layers, shape.kv_heads, shape.head_dim
        value_groups, key_group = dim // self._value_group(dim), self.settings.key_group
        layout = {}
        for name, is_key, is_protected, bits in self._pieces:
            rows = protected if is_protected else shape.rows - protected
            if bits is None:
                layout[name] = TensorSpec(shape.dtype, (rows, layers, heads, dim))
                continue
            layout[name] = TensorSpec(torch.uint8, (rows, layers, heads, dim // codes_per_byte(bits)))
            size = (-(-rows // key_group), layers, heads, dim) if is_key else (rows, layers, heads, value_groups)
            layout[name + GRID] = TensorSpec(torch.int32, size)
        return layout

    def restore(self, segments: Sequence[SegmentToRestore]) -> None:
        """See `Codec`."""
        host: list[RowGroups] = []
        for segment in segments:
            places, classes = segment.places(), self._classes(torch.from_numpy(segment.text), segment.shapes)
            host += [classes[is_protected].put_into(places) for is_protected in (False, True)]
        moved = _moved(host, segments[0].target.device)
        for segment, images, protected in zip(segments, moved[::2], moved[1::2], strict=True):
            self._restore(segment, {False: images, True: protected})

    def _restore(self, segment: SegmentToRestore, classes: Mapping[bool, RowGroups]) -> None:
        """`classes` are on the device, and have the rows that they go to."""
        use = arithmetic(segment.target.device)
        for piece in self._pieces:
            out = segment.target.keys if piece.is_key else segment.target.values
            codes, grids = segment.tensors[piece.name], segment.tensors.get(piece.name + GRID)
            members = classes[piece.is_protected]
            if grids is None or piece.bits is None:
                out.index_copy_(1, members.rows.rows, codes.transpose(0, 1).to(out.dtype))
            elif piece.is_key:
                use.decompress_channels(codes, grids, members, piece.bits, out)
            else:
                group = self._value_group(segment.shapes[0].head_dim)
                use.decompress_vectors(codes, grids, members.rows.rows, group, piece.bits, out)

    def _classes(self, text: Tensor, shapes: Sequence[SegmentShape]) -> dict[bool, RowGroups]:
        """By whether they are protected, the rows of a class and their groups for keys."""
        images, protected = split_rows(text, shapes, self.settings.sinks)
        return {False: self._grouped(images), True: self._grouped(protected)}

    def _grouped(self, rows: RowClass) -> RowGroups:
        return RowGroups.of(rows, self.settings.key_group)

    @cached_property
    def _pieces(self) -> tuple[Piece, ...]:
        """All pieces of a segment, in the order they are stored."""
        protected = None if self.settings.protected == "raw" else self.settings.protected
        return (
            Piece("k", True, False, self.settings.keys),
            Piece("v", False, False, self.settings.values),
            Piece("pk", True, True, protected),
            Piece("pv", False, True, protected),
        )

    def _value_group(self, dim: int) -> int:
        return gcd(self.settings.value_group, dim)

    def _check(self, shape: SegmentShape) -> None:
        if shape.head_dim % 4:
            raise CodecError(f"head_dim {shape.head_dim} is no multiple of 4, as {self.name} needs it; use raw")


def _moved(classes: Sequence[RowGroups], device: torch.device) -> list[RowGroups]:
    """Classes on the device, by one copy."""
    moved = move_together([tensor for groups in classes for tensor in (groups.rows.rows, groups.starts)], device)
    return [
        replace(groups, rows=replace(groups.rows, rows=rows), starts=starts)
        for groups, rows, starts in zip(classes, moved[::2], moved[1::2], strict=True)
    ]
