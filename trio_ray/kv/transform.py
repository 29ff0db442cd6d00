"""Keys and values of several layers in the components of a calibrated basis, quantised with one step: after KVTC
(arXiv 2511.01815).

Keys have their rotation undone, so that what is alike looks alike at every position. All channels of a group of layers,
each weighed by how much an answer depends on it, are expressed in the principal components of a calibration set, of
image rows and of text rows apart; text rows ahead of the image, the same in every sample, by their differences from a
mean of their own. One step for all weighted components is the rate-distortion optimum: those that vary less than it
vanish.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.kv.batch import SegmentBatch
from trio_ray.kv.codec import Codec, CodecError, CodedSegments, SegmentShape, TensorSpec, batch_of, empty_states
from trio_ray.kv.moving import move_together
from trio_ray.kv.spec import TransformSpec
from trio_ray.kv.transform_bands import BANDS, pack, unpack
from trio_ray.kv.transform_basis import FOLD_BITS, KINDS, ROTATION_BITS, STEP_BITS, TENSORS, Basis, Components, Group
from trio_ray.kv.transform_integers import Chunk, row_symbols
from trio_ray.method.fusion import fused, on_device
from trio_ray.method.rows import select_rows

CHUNK = 8192
"""Rows coded or decoded at once, which bounds the memory of their integers and floats."""


@dataclass(frozen=True)
class Rows:
    """The rows of one kind in a segment of B samples.

    Attributes:
        index: (n,) int64, where they are.
        mean: (n,) int64, which mean each differs from, see `Components.offset`.
        counts: how many of them each sample has.
    """

    index: Tensor
    mean: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Synthesis:
    """From symbols back to rows of one kind, in floats: `symbols @ matrix * scale + mean`.

    Attributes:
        matrix: (R and up to 7 rows of 0, C): fp32, or fp16 where that is as exact as the states that come of it.
        scale: (C,) fp32.
        mean: (means, C) fp32.
    """

    matrix: Tensor
    scale: Tensor
    mean: Tensor

    @classmethod
    def of(cls, part: Components, exponent: Tensor, dtype: torch.dtype) -> Synthesis:
        """The least-squares inverse of the integers' way, with a matrix of `dtype`."""
        forward = part.matrix.double()
        inverse = torch.linalg.solve(forward @ forward.T, forward)
        size = 2.0**STEP_BITS / part.multiplier.double()
        matrix = F.pad((inverse * size[:, None]).to(dtype), (0, 0, 0, -len(forward) % 8))
        scale = torch.ldexp(part.fold.double(), exponent.int() - FOLD_BITS).reciprocal().float()
        return cls(matrix, scale, part.mean)

    def products(self, symbols: Tensor) -> Tensor:
        """(n, C) fp32 of (n, R) int16. Tensor cores multiply by fp16 and add in fp32."""
        whole = F.pad(symbols, (0, len(self.matrix) - symbols.shape[1])).to(self.matrix.dtype)
        if self.matrix.dtype == torch.float32:
            return whole @ self.matrix
        return torch.mm(whole, self.matrix, out_dtype=torch.float32)


class Transform(Codec):
    """One tensor a segment: of each sample, of image rows and then of text rows, by band (`transform_bands`) the packed
    symbols of all groups of layers, row by row.

    Args:
        settings: parameters.
        basis: the one that the settings name.
    """

    settings: TransformSpec

    def __init__(self, settings: TransformSpec, basis: Basis) -> None:
        self.settings = settings
        self._basis = basis
        self._bases: dict[torch.device, Basis] = {}
        self._syntheses: dict[tuple[torch.device, torch.dtype, int, int], Synthesis] = {}

    def encode(self, batch: SegmentBatch) -> CodedSegments:
        """See `Codec`."""
        shapes = SegmentShape.of(batch)
        numbers = self._groups(shapes[0])
        basis = self._basis_on(batch.keys.device)
        groups = [basis.groups[number] for number in numbers]
        blocks: list[list[Tensor]] = [[] for _ in shapes]
        for kind, rows in enumerate(_rows_of_kinds(batch.text, shapes, basis.leads)):
            for packed in self._encode_rows(basis, groups, kind, batch, rows):
                for block, piece in zip(blocks, packed.split(list(rows.counts)), strict=True):
                    block.append(piece.flatten())
        pieces = [torch.cat(block) if block else batch.text.new_empty(0, dtype=torch.uint8) for block in blocks]
        return CodedSegments({TENSOR: torch.cat(pieces)}, {TENSOR: tuple(len(piece) for piece in pieces)})

    def layout(self, shape: SegmentShape) -> dict[str, TensorSpec]:
        """See `Codec`."""
        groups = [self._basis.groups[number] for number in self._groups(shape)]
        size = sum(rows * sum(_widths(groups, kind)) for kind, rows in enumerate(_row_counts(shape)))
        return {TENSOR: TensorSpec(torch.uint8, (size,))}

    @torch.no_grad()
    def decode(
        self, tensors: Mapping[str, Tensor], shapes: Sequence[SegmentShape], position: Tensor, text: Tensor
    ) -> SegmentBatch:
        """See `Codec`."""
        numbers = self._groups(shapes[0])
        device = tensors[TENSOR].device
        basis = self._basis_on(device)
        groups = [basis.groups[number] for number in numbers]
        kinds = _rows_of_kinds(text, shapes, basis.leads)
        numbers_of_rows = [tensor for rows in kinds for tensor in (rows.index, rows.mean)]
        position, text, *moved = move_together([position, text, *numbers_of_rows], device)
        batch = batch_of(shapes, *empty_states(shapes, device), position, text)
        for kind, bands in enumerate(_bands(tensors[TENSOR], shapes, groups)):
            for rows, chunk in _chunks(basis, moved[2 * kind], moved[2 * kind + 1], position):
                mine = _split_groups([band[rows] for band in bands], groups, kind)
                for number, group, packed in zip(numbers, groups, mine, strict=True):
                    way = self._synthesis(basis, number, kind, batch.keys.dtype)
                    products = way.products(unpack(packed, group.kinds[kind].counts))
                    _put_rows(batch, group, chunk, products, way)
        return batch

    def whole_groups(self, first_layer: int, least: int) -> int:
        """The fewest layers from `first_layer` on that are whole groups, and at least so many, if there are."""
        ends = [group.first_layer + group.layers - first_layer for group in self._basis.groups]
        return min((end for end in ends if end >= least), default=ends[-1])

    @staticmethod
    def _encode_rows(basis: Basis, groups: Sequence[Group], kind: int, batch: SegmentBatch, rows: Rows) -> list[Tensor]:
        """By band (n, bytes) uint8 packed symbols of rows of one kind, the groups side by side."""
        pieces = []
        for _, chunk in _chunks(basis, rows.index, rows.mean, batch.position):
            packed = []
            for group in groups:
                layers = _layers(batch, group)
                found = row_symbols(group, kind, basis.rounding, batch.keys[layers], batch.values[layers], chunk)
                packed.append(pack(found, group.kinds[kind].counts))
            pieces.append([torch.cat(bands, 1) for bands in zip(*packed, strict=True)])
        return [torch.cat(bands) for bands in zip(*pieces, strict=True)]

    def _groups(self, shape: SegmentShape) -> list[int]:
        """Numbers of the groups that make up a segment. Raises `CodecError` if none do."""
        basis, stop = self._basis, shape.first_layer + shape.layers
        if (shape.kv_heads, shape.head_dim) != (basis.kv_heads, basis.head_dim):
            raise CodecError(
                f"codec.basis: made for {basis.kv_heads} heads of {basis.head_dim}, "
                f"not for {shape.kv_heads} of {shape.head_dim}"
            )
        numbers = [n for n, group in enumerate(basis.groups) if shape.first_layer <= group.first_layer < stop]
        groups = [basis.groups[number] for number in numbers]
        if not groups or groups[0].first_layer != shape.first_layer or sum(g.layers for g in groups) != shape.layers:
            raise CodecError(
                f"codec.basis: its groups of layers do not make up layers {shape.first_layer} to {stop - 1}, which "
                "hold the same rows; calibrate with the job's own prune points"
            )
        return numbers

    def _basis_on(self, device: torch.device) -> Basis:
        """The basis on a device; moved there once."""
        if device not in self._bases:
            self._bases[device] = _moved(self._basis, device)
        return self._bases[device]

    def _synthesis(self, basis: Basis, number: int, kind: int, dtype: torch.dtype) -> Synthesis:
        """The way back to states of `dtype` in a group's rows of one kind; made once for each device.

        On a GPU states of 16 bits come of a matrix in fp16: its rounding is as fine as theirs, and the product some ten
        times as fast as one of fp32.
        """
        group = basis.groups[number]
        device = group.exponent.device
        matrix_dtype = torch.float16 if device.type == "cuda" and dtype.itemsize == 2 else torch.float32
        key = (device, matrix_dtype, number, kind)
        if key not in self._syntheses:
            self._syntheses[key] = Synthesis.of(group.kinds[kind], group.exponent, matrix_dtype)
        return self._syntheses[key]


TENSOR = "symbols"


def _row_counts(shape: SegmentShape) -> tuple[int, int]:
    """Rows of each kind, in the order of `KINDS`."""
    return shape.images, shape.rows - shape.images


def _rows_of_kinds(text: Tensor, shapes: Sequence[SegmentShape], leads: int) -> list[Rows]:
    """The rows of each kind, in the order of `KINDS`; `text` (T,) bool."""
    lengths = [shape.rows for shape in shapes]
    starts = list(accumulate(lengths, initial=0))[:-1]
    device, total = text.device, sum(lengths)
    sample = torch.repeat_interleave(
        torch.arange(len(shapes), device=device), on_device(lengths, device), output_size=total
    )
    number = torch.arange(total, device=device) - on_device(starts, device)[sample]
    own = on_device([min(shape.lead, leads) for shape in shapes], device)[sample]
    mean = torch.where(text & (number < own), number + 1, 0)
    kinds = []
    for kind, mask in enumerate((~text, text)):
        counts = tuple(_row_counts(shape)[kind] for shape in shapes)
        index = select_rows(mask, sum(counts))
        kinds.append(Rows(index, mean[index], counts))
    return kinds


def _widths(groups: Sequence[Group], kind: int) -> list[int]:
    """Bytes a row in each band, all groups together."""
    return [sum(band.width(group.kinds[kind].counts[number]) for group in groups) for number, band in enumerate(BANDS)]


def _bands(stored: Tensor, shapes: Sequence[SegmentShape], groups: Sequence[Group]) -> list[list[Tensor]]:
    """By kind and band, (rows of all samples, bytes) uint8 packed symbols, from the samples' pieces."""
    counts = [_row_counts(shape) for shape in shapes]
    places = [(kind, width) for kind in range(len(KINDS)) for width in _widths(groups, kind)]
    blocks = stored.split([own[kind] * width for own in counts for kind, width in places])
    bands: list[list[Tensor]] = [[] for _ in KINDS]
    for number, (kind, width) in enumerate(places):
        joined = torch.cat(blocks[number :: len(places)])
        bands[kind].append(joined.view(sum(own[kind] for own in counts), width))
    return bands


def _split_groups(bands: Sequence[Tensor], groups: Sequence[Group], kind: int) -> list[list[Tensor]]:
    """By group the bands of each, from bands in which the groups lie side by side."""
    cut = [
        tensor.split([band.width(group.kinds[kind].counts[number]) for group in groups], 1)
        for number, (band, tensor) in enumerate(zip(BANDS, bands, strict=True))
    ]
    return [list(mine) for mine in zip(*cut, strict=True)]


def _chunks(basis: Basis, index: Tensor, mean: Tensor, position: Tensor) -> Iterator[tuple[slice, Chunk]]:
    """The rows `index` in runs, with the slice of them that each is; at least one run, if an empty one."""
    for start in range(0, max(len(index), 1), CHUNK):
        rows = slice(start, start + CHUNK)
        yield rows, Chunk.of(basis, index[rows], mean[rows], position)


def _layers(batch: SegmentBatch, group: Group) -> slice:
    first = group.first_layer - batch.first_layer
    return slice(first, first + group.layers)


def _put_rows(batch: SegmentBatch, group: Group, chunk: Chunk, products: Tensor, way: Synthesis) -> None:
    """A chunk's keys and values in a group's layers, into their rows of a batch."""
    layers = _layers(batch, group)
    size = (group.layers, 2, *batch.keys.shape[2:])
    keys, values = _states(
        products.unflatten(1, size), way.scale.view(size), way.mean.unflatten(1, size), chunk.mean, chunk.cosine,
        chunk.sine, batch.keys.dtype,
    )  # fmt: skip
    batch.keys[layers].index_copy_(1, chunk.index, keys)
    batch.values[layers].index_copy_(1, chunk.index, values)


@fused(products=(0,), mean=(0,), cosine=(0,), sine=(0,))
def _states(
    products: Tensor, scale: Tensor, means: Tensor, mean: Tensor, cosine: Tensor, sine: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Keys, at their positions again, and values, (layers, n, heads, dim) of `dtype`.

    Args:
        products: (n, layers, 2, heads, dim) fp32, see `Synthesis`; `scale` and `means` without and with n likewise.
        mean: (n,) int64, which of the means is each row's.
        cosine, sine: (n, dim / 2) int16, see `Chunk`.
        dtype: of the states.
    """
    both = (products * scale + means[mean]).permute(1, 2, 0, 3, 4)
    low, high = both[:, 0].chunk(2, -1)
    cosine, sine = (table[:, None].float() * 2.0**-ROTATION_BITS for table in (cosine, sine))
    keys = torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1)
    return keys.to(dtype), both[:, 1].to(dtype)


def _moved(basis: Basis, device: torch.device) -> Basis:
    def move(part: Components) -> Components:
        return Components(part.counts, **{name: getattr(part, name).to(device) for name in TENSORS})

    groups = tuple(
        replace(group, exponent=group.exponent.to(device), image=move(group.image), text=move(group.text))
        for group in basis.groups
    )
    return replace(basis, cosine=basis.cosine.to(device), sine=basis.sine.to(device), groups=groups)
