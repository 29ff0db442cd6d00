"""Integers on a grid of their own for each group: keys by channel over some rows, values by row over some channels.

Keys have channels far larger than the rest, values have not; so each is grouped along what it has in common (KIVI,
arXiv 2402.02750). Text rows and sink rows, which every later token looks at, are coded apart with more bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import gcd

import torch
from torch import Tensor

from trio_ray.kv.batch import SegmentBatch, SegmentShape
from trio_ray.kv.codecs.arithmetic import arithmetic
from trio_ray.kv.codecs.classes import RowClass, protected_rows, split_rows
from trio_ray.kv.codecs.codec import Codec, CodecError, CodedSegments
from trio_ray.kv.codecs.quantise import RowGroups, codes_per_byte
from trio_ray.kv.codecs.spec import IntegerSpec
from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.kv.target import RowTarget
from trio_ray.tensors import move_together


@dataclass(frozen=True)
class Piece:
    """The keys or the values of one class of rows, in consecutive layers of a segment that have equal widths.

    Attributes:
        name: of its tensors: `<first layer in the segment>.<class><k or v>`; `.grid` behind it for the grids.
        layers: in the segment, from 0.
        is_key: keys (groups along rows) or values (groups along channels).
        is_protected: protected rows or the other image rows.
        bits: width; None leaves them as they are.
    """

    name: str
    layers: slice
    is_key: bool
    is_protected: bool
    bits: int | None


@dataclass(frozen=True)
class Integer(Codec):
    """Per piece codes, (rows, layers, kv_heads, bytes) uint8, and grids, int32 (float16 zero and scale, `quantise`):
    of keys (groups, layers, kv_heads, head_dim), of values (rows, layers, kv_heads, groups).
    """

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
        for piece in self._pieces(shapes[0]):
            source = (batch.keys if piece.is_key else batch.values)[piece.layers]
            members = classes[piece.is_protected]
            grid, counts[piece.name] = f"{piece.name}.grid", members.rows.counts
            if piece.bits is None:
                tensors[piece.name] = source.transpose(0, 1).index_select(0, members.rows.rows)
            elif piece.is_key:
                tensors[piece.name], tensors[grid] = use.encode_channels(source, members, piece.bits)
                counts[grid] = members.counts
            else:
                group = self._value_group(source.shape[-1])
                tensors[piece.name], tensors[grid] = use.encode_vectors(source, members.rows.rows, group, piece.bits)
                counts[grid] = members.rows.counts
        return CodedSegments(tensors, counts)

    def layout(self, shape: SegmentShape) -> dict[str, TensorSpec]:
        """See `Codec`."""
        self._check(shape)
        protected = protected_rows(shape, self.settings.sinks)
        layout = {}
        for piece in self._pieces(shape):
            rows = protected if piece.is_protected else shape.rows - protected
            layers, heads, dim = piece.layers.stop - piece.layers.start, shape.kv_heads, shape.head_dim
            if piece.bits is None:
                layout[piece.name] = TensorSpec(shape.dtype, (rows, layers, heads, dim))
                continue
            layout[piece.name] = TensorSpec(torch.uint8, (rows, layers, heads, dim // codes_per_byte(piece.bits)))
            groups = -(-rows // self.settings.key_group)
            size = (
                (groups, layers, heads, dim) if piece.is_key else (rows, layers, heads, dim // self._value_group(dim))
            )
            layout[f"{piece.name}.grid"] = TensorSpec(torch.int32, size)
        return layout

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        shapes: Sequence[SegmentShape],
        position: Tensor,
        text: Tensor,
        target: RowTarget,
    ) -> None:
        """See `Codec`."""
        device = target.rows.device
        use = arithmetic(device)
        classes = _moved(self._classes(text, shapes), device)
        for piece in self._pieces(shapes[0]):
            out = (target.keys if piece.is_key else target.values)[piece.layers]
            codes, grids = tensors[piece.name], tensors.get(f"{piece.name}.grid")
            members = _into(classes[piece.is_protected], target.rows)
            if grids is None or piece.bits is None:
                out.index_copy_(1, members.rows.rows, codes.transpose(0, 1).to(out.dtype))
            elif piece.is_key:
                use.decode_channels(codes, grids, members, piece.bits, out)
            else:
                group = self._value_group(shapes[0].head_dim)
                use.decode_vectors(codes, grids, members.rows.rows, group, piece.bits, out)

    def _classes(self, text: Tensor, shapes: Sequence[SegmentShape]) -> dict[bool, RowGroups]:
        """By whether they are protected, the rows of a class and their groups for keys."""
        images, protected = split_rows(text, shapes, self.settings.sinks)
        return {False: self._grouped(images), True: self._grouped(protected)}

    def _grouped(self, rows: RowClass) -> RowGroups:
        return RowGroups.of(rows, self.settings.key_group)

    def _pieces(self, shape: SegmentShape) -> Iterator[Piece]:
        """All pieces of a segment of this shape, in the order they are stored."""
        widths = [self.settings.bits_of(shape.first_layer + layer) for layer in range(shape.layers)]
        protected = None if self.settings.protected == "raw" else self.settings.protected
        for (keys, values), run in groupby(range(shape.layers), key=widths.__getitem__):
            first, *rest = run
            layers = slice(first, first + 1 + len(rest))
            yield Piece(f"{first}.k", layers, True, False, keys)
            yield Piece(f"{first}.v", layers, False, False, values)
            yield Piece(f"{first}.pk", layers, True, True, protected)
            yield Piece(f"{first}.pv", layers, False, True, protected)

    def _value_group(self, dim: int) -> int:
        return gcd(self.settings.value_group, dim)

    def _check(self, shape: SegmentShape) -> None:
        if shape.head_dim % 4:
            raise CodecError(f"head_dim {shape.head_dim} is no multiple of 4, as {self.name} needs it; use raw or fp8")


def _moved(classes: Mapping[bool, RowGroups], device: torch.device) -> dict[bool, RowGroups]:
    """The classes on the device, by one copy."""
    moved = move_together([t for groups in classes.values() for t in (groups.rows.rows, groups.starts)], device)
    pairs = zip(classes.items(), moved[::2], moved[1::2], strict=True)
    return {
        name: replace(groups, rows=replace(groups.rows, rows=rows), starts=starts)
        for (name, groups), rows, starts in pairs
    }


def _into(groups: RowGroups, target_rows: Tensor) -> RowGroups:
    """The same groups with the rows that they have in a target."""
    return replace(groups, rows=replace(groups.rows, rows=target_rows[groups.rows.rows]))
