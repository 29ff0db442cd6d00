"""Keys and values of several layers in the components of a calibrated basis, quantised with one step: after KVTC
(arXiv 2511.01815).

Keys have their rotation undone, so that what is alike looks alike at every position. All channels of a group of layers,
each weighed by how much an answer depends on it, are expressed in the principal components of a calibration set, of
image rows and of text rows apart; text rows ahead of the image, the same in every sample, by their differences from a
mean of their own. One step for all weighted components is the rate-distortion optimum: those that vary less than it
vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from trio_ray.kv.batch import SegmentBatch, SegmentShape
from trio_ray.kv.codecs.codec import Codec, CodecError, CodedSegments, SegmentToRestore
from trio_ray.kv.codecs.spec import CodecSpec
from trio_ray.kv.codecs.transform_bands import BANDS, PackedPlaces
from trio_ray.kv.codecs.transform_basis import (
    KINDS,
    TENSORS,
    TEXT,
    Basis,
    Components,
    Group,
)
from trio_ray.kv.codecs.transform_basis import read_basis as parse_basis
from trio_ray.kv.codecs.transform_integers import Chunk, TorchRowCoder
from trio_ray.kv.codecs.transform_inverse import (
    RESTORED_ROWS,
    ByteInverse,
    GroupInverse,
    Turn,
    has_exact_bytes,
    put_rows,
)
from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.method.rows import select_rows
from trio_ray.tensors import has_triton, move_together, on_device, to_device

if TYPE_CHECKING:
    from trio_ray.kv.kernels.inverse_transform import SegmentInverse

CHUNK, GPU_CHUNK = 1 << 23, 1 << 26
"""Rows times channels of the widest group that are compressed at once, which bounds the memory of their integers. A GPU
wants few and large pieces of work.
"""
RESTORED_AT_ONCE = 1 << 20
"""The same where torch restores, whose floats then stay in a CPU's cache from one step to the next."""


@dataclass(frozen=True)
class Rows:
    """The rows of one kind in a segment of B samples.

    Attributes:
        index: (n,) int64, where they are.
        sample: (n,) int64, whose they are.
        mean: (n,) int64, which mean each differs from, see `Components.offset`.
        counts: how many of them each sample has.
    """

    index: Tensor
    sample: Tensor
    mean: Tensor
    counts: tuple[int, ...]


class RowCoder(Protocol):
    """What `transform_integers` and `transform_kernels` both offer; see `TorchRowCoder`."""

    def put(self, keys: Tensor, values: Tensor, chunk: Chunk, places: PackedPlaces) -> None: ...


def row_coder(group: Group, kind: int, rounding: int) -> RowCoder:
    """The implementation for the device that a group is on. On a GPU decoding and calibrating take Triton too."""
    if group.exponent.is_cuda:
        from trio_ray.kv.kernels import transform as transform_kernels

        return transform_kernels.KernelRowCoder.of(group, kind, rounding)
    return TorchRowCoder(group, kind, rounding)


class TransformSpec(CodecSpec):
    """Components of a calibrated basis, with one step for all."""

    name: Literal["transform"] = "transform"
    basis: str = Field(
        min_length=1, description="The calibrated basis: its xxh3-128; in a job's settings its path or s3:// URI."
    )


class Transform(Codec):
    """One tensor a segment: of each sample, of image rows and then of text rows, by band (`transform_bands`) the packed
    symbols of all groups of layers, row by row.

    Args:
        settings: parameters.
        basis: the one that the settings name.
    """

    Settings: ClassVar[type[CodecSpec]] = TransformSpec

    settings: TransformSpec

    def __init__(self, settings: TransformSpec, basis: Basis) -> None:
        self.settings = settings
        self._basis = basis
        self._known_widths: dict[tuple[int, int, int, int], list[list[int]]] = {}
        self._bases: dict[torch.device, Basis] = {}
        self._coders: dict[tuple[torch.device, int, int], RowCoder] = {}
        self._inverses: dict[tuple[torch.device, torch.dtype, int, int], GroupInverse] = {}
        self._byte_inverses: dict[tuple[int, int], ByteInverse] = {}
        self._segment_inverses: dict[tuple[torch.device, torch.dtype, tuple[int, ...], int], SegmentInverse] = {}

    @classmethod
    def make(cls, settings: CodecSpec, read_basis: Callable[[str], bytes] | None) -> Transform:
        """See `Codec`."""
        spec = TransformSpec.model_validate(settings.model_dump())
        if read_basis is None:
            raise CodecError(f"codec.basis: nothing here can read the basis {spec.basis}")
        return cls(spec, parse_basis(read_basis(spec.basis)))

    def encode(self, batch: SegmentBatch) -> CodedSegments:
        """See `Codec`."""
        shapes = SegmentShape.of(batch)
        numbers, device = self._groups(shapes[0]), batch.keys.device
        basis = self._basis_on(device)
        groups = [basis.groups[number] for number in numbers]
        widths = self._widths_of(shapes[0])
        blocks = _blocks(shapes, widths)
        runs = blocks.reshape(len(shapes), -1).tolist()
        sizes = tuple(map(sum, runs))
        stored = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        for kind, rows in enumerate(_rows_of_kinds(batch.text, shapes, basis.leads)):
            begins, columns = _begins(blocks, widths, rows, kind), _columns(groups, kind)
            at_once = max(1, (GPU_CHUNK if device.type == "cuda" else CHUNK) // _widest(groups))
            for part, chunk in _chunks(basis, rows.index, rows.mean, batch.position, at_once):
                for number, group, own in zip(numbers, groups, columns, strict=True):
                    layers, places = _layers(batch, group), PackedPlaces(stored, begins[part], own)
                    self._coder(basis, number, kind).put(batch.keys[layers], batch.values[layers], chunk, places)
        return CodedSegments({TENSOR: stored}, {TENSOR: sizes}, {TENSOR: runs})

    def layout(self, shape: SegmentShape) -> dict[str, TensorSpec]:
        """See `Codec`."""
        widths = self._widths_of(shape)
        runs = [rows * width for rows, own in zip(_row_counts(shape), widths, strict=True) for width in own]
        return {TENSOR: TensorSpec(torch.uint8, (sum(runs),), tuple(runs))}

    @torch.no_grad()
    def restore(self, segments: Sequence[SegmentToRestore]) -> None:
        """See `Codec`."""
        device = segments[0].target.device
        basis = self._basis_on(device)
        if has_triton(device):
            self._restore_by_kernels(segments, basis)
            return
        for segment in segments:
            self._restore_in_torch(segment, basis)

    def _restore_in_torch(self, segment: SegmentToRestore, basis: Basis) -> None:
        shapes, target = segment.shapes, segment.target
        numbers = self._groups(shapes[0])
        groups = [basis.groups[number] for number in numbers]
        kinds = _rows_on_host(segment.text, shapes, basis.leads)
        places = torch.from_numpy(segment.places())
        most = max(RESTORED_AT_ONCE // _widest(groups), RESTORED_ROWS)
        by_kind = _bands(segment.tensors[TENSOR], shapes, self._widths_of(shapes[0]))
        position = torch.from_numpy(segment.position)
        for kind, (own, bands) in enumerate(zip(kinds, by_kind, strict=True)):
            at_once = _even(len(own.index), most)
            chunks = list(_chunks(basis, own.index, own.mean, position, at_once))
            turns = [Turn.of(chunk, places) for _, chunk in chunks]
            # Group by group, so that a CPU's cache keeps a group's matrix from one chunk to the next.
            for number, group, packed in zip(numbers, groups, _split_groups(bands, groups, kind), strict=True):
                inverse = self.host_inverse(basis, number, kind, target.keys.dtype)
                for (rows, chunk), turn in zip(chunks, turns, strict=True):
                    states = inverse.states([band[rows] for band in packed], chunk.mean)
                    put_rows(target, group.first_layer - shapes[0].first_layer, group.layers, turn, states)

    def _restore_by_kernels(self, segments: Sequence[SegmentToRestore], basis: Basis) -> None:
        """The rows of all segments are found and sent together, those of each kind one segment behind the other."""
        from trio_ray.kv.kernels.inverse_transform import PackedRows, restore_rows

        samples = len(segments[0].shapes)
        numbers = [self._groups(segment.shapes[0]) for segment in segments]
        widths = [self._widths_of(segment.shapes[0]) for segment in segments]
        blocks = [_blocks(segment.shapes, own) for segment, own in zip(segments, widths, strict=True)]
        text = np.concatenate([segment.text for segment in segments])
        position = np.concatenate([segment.position for segment in segments])
        places = np.concatenate([segment.places() for segment in segments])
        kinds = _rows_on_host(text, [shape for segment in segments for shape in segment.shapes], basis.leads)
        host: list[NDArray[Any]] = []
        ends: list[list[int]] = []
        for kind, rows in enumerate(kinds):
            index, sample, mean = (tensor.numpy() for tensor in (rows.index, rows.sample, rows.mean))
            host += [places[index], position[index], sample % samples, mean]
            counts = np.array(rows.counts, np.int64).reshape(len(segments), samples)
            ends.append([0, *counts.sum(1).cumsum().tolist()])
            host += [
                _first_bytes(own, width, count, kind, begin)
                for own, width, count, begin in zip(blocks, widths, counts, ends[kind][:-1], strict=True)
            ]
        moved = iter(move_together([torch.from_numpy(array) for array in host], segments[0].target.device))
        for kind in range(len(kinds)):
            place, where, sample_of, mean_of = (next(moved) for _ in range(4))
            for number, segment in enumerate(segments):
                begin, end = ends[kind][number : number + 2]
                inverse = self._segment_inverse(basis, numbers[number], kind, segment.target.keys.dtype)
                stored, first = segment.tensors[TENSOR], next(moved)
                packed = PackedRows(stored, place, where, sample_of, mean_of, first, begin, end)
                restore_rows(inverse, packed, basis.cosine, basis.sine, segment.target)

    def whole_groups(self, first_layer: int, least: int) -> int:
        """The fewest layers from `first_layer` on that are whole groups, and at least so many, if there are."""
        ends = [group.first_layer + group.layers - first_layer for group in self._basis.groups]
        return min((end for end in ends if end >= least), default=ends[-1])

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

    def _widths_of(self, shape: SegmentShape) -> list[list[int]]:
        """By kind, bytes a row in each band, of all groups of a segment. Raises what `_groups` raises."""
        key = (shape.first_layer, shape.layers, shape.kv_heads, shape.head_dim)
        if key not in self._known_widths:
            groups = [self._basis.groups[number] for number in self._groups(shape)]
            self._known_widths[key] = [_widths(groups, kind) for kind in range(len(KINDS))]
        return self._known_widths[key]

    def _basis_on(self, device: torch.device) -> Basis:
        """The basis on a device; moved there once."""
        if device not in self._bases:
            self._bases[device] = _moved(self._basis, device)
        return self._bases[device]

    def _coder(self, basis: Basis, number: int, kind: int) -> RowCoder:
        """What codes a group's rows of one kind; made once for each device."""
        group = basis.groups[number]
        key = (group.exponent.device, number, kind)
        if key not in self._coders:
            self._coders[key] = row_coder(group, kind, basis.rounding)
        return self._coders[key]

    def group_inverse(self, basis: Basis, number: int, kind: int, dtype: torch.dtype) -> GroupInverse:
        """The inverse transform to states of `dtype` in a group's rows of one kind; made once for each device.

        On a GPU states of 16 bits come of a matrix in fp16: its rounding is as fine as theirs, and the product some ten
        times as fast as one of fp32.
        """
        group = basis.groups[number]
        device = group.exponent.device
        matrix_dtype = torch.float16 if device.type == "cuda" and dtype.itemsize == 2 else torch.float32
        key = (device, matrix_dtype, number, kind)
        if key not in self._inverses:
            self._inverses[key] = GroupInverse.of(group.kinds[kind], group.exponent, group.layers, matrix_dtype)
        return self._inverses[key]

    def host_inverse(self, basis: Basis, number: int, kind: int, dtype: torch.dtype) -> ByteInverse | GroupInverse:
        """The same without kernels of our own: states of 16 bits come of 8-bit products where a CPU has exact ones."""
        inverse = self.group_inverse(basis, number, kind, dtype)
        device = inverse.matrix.device
        if device.type != "cpu" or dtype.itemsize > 2 or not has_exact_bytes():
            return inverse
        if (number, kind) not in self._byte_inverses:
            self._byte_inverses[number, kind] = ByteInverse.of(inverse)
        return self._byte_inverses[number, kind]

    def _segment_inverse(self, basis: Basis, numbers: Sequence[int], kind: int, dtype: torch.dtype) -> SegmentInverse:
        """The same in all groups of a segment, for the kernels."""
        from trio_ray.kv.kernels.inverse_transform import SegmentInverse

        inverses = [self.group_inverse(basis, number, kind, dtype) for number in numbers]
        key = (inverses[0].matrix.device, inverses[0].matrix.dtype, tuple(numbers), kind)
        if key not in self._segment_inverses:
            self._segment_inverses[key] = SegmentInverse.of(inverses)
        return self._segment_inverses[key]


TENSOR = "symbols"


def _row_counts(shape: SegmentShape) -> tuple[int, int]:
    """Rows of each kind, in the order of `KINDS`."""
    return shape.images, shape.rows - shape.images


def _rows_of_kinds(text: Tensor, shapes: Sequence[SegmentShape], leads: int) -> list[Rows]:
    """The rows of each kind, in the order of `KINDS`; `text` (T,) bool."""
    lengths = [shape.rows for shape in shapes]
    starts = list(accumulate(lengths, initial=0))[:-1]
    device, total = text.device, sum(lengths)
    if device.type == "cpu":
        return _rows_on_host(text.numpy(), shapes, leads)
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
        kinds.append(Rows(index, sample[index], mean[index], counts))
    return kinds


def _rows_on_host(text: NDArray[np.bool_], shapes: Sequence[SegmentShape], leads: int) -> list[Rows]:
    """The same in host memory, where numpy takes a fifth of the time; `text` is that of any number of segments, and
    `shapes` those of their samples, in order.
    """
    kinds = []
    lengths = np.array([shape.rows for shape in shapes])
    own = np.array([min(shape.lead, leads) for shape in shapes])
    starts = lengths.cumsum() - lengths
    for kind, mask in enumerate((~text, text)):
        counts = tuple(_row_counts(shape)[kind] for shape in shapes)
        (index,) = mask.nonzero()
        sample = np.repeat(np.arange(len(shapes)), counts)
        mean = np.zeros_like(index)
        if KINDS[kind] == TEXT:
            number = index - starts[sample]
            mean = np.where(number < own[sample], number + 1, 0)
        kinds.append(Rows(torch.from_numpy(index), torch.from_numpy(sample), torch.from_numpy(mean), counts))
    return kinds


def _widths(groups: Sequence[Group], kind: int) -> list[int]:
    """Bytes a row in each band, all groups together."""
    return [sum(band.width(group.kinds[kind].counts[number]) for group in groups) for number, band in enumerate(BANDS)]


def _blocks(shapes: Sequence[SegmentShape], widths: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """(B, kinds, bands) bytes of the samples' blocks, as they are stored; `widths` by kind: a row's in each band."""
    return np.array([_row_counts(shape) for shape in shapes], np.int64)[:, :, None] * np.array(widths, np.int64)


def _bands(stored: Tensor, shapes: Sequence[SegmentShape], widths: Sequence[Sequence[int]]) -> list[list[Tensor]]:
    """By kind and band, (rows of all samples, bytes) uint8 packed symbols, from the samples' pieces."""
    blocks = stored.split(_blocks(shapes, widths).reshape(-1).tolist())
    bands: list[list[Tensor]] = []
    for kind in range(len(KINDS)):
        rows = sum(_row_counts(shape)[kind] for shape in shapes)
        own = range(kind * len(BANDS), (kind + 1) * len(BANDS))
        joined = [torch.cat(blocks[number :: len(KINDS) * len(BANDS)]) for number in own]
        bands.append([band.view(rows, width) for band, width in zip(joined, widths[kind], strict=True)])
    return bands


def _split_groups(bands: Sequence[Tensor], groups: Sequence[Group], kind: int) -> list[list[Tensor]]:
    """By group the bands of each, from bands in which the groups lie side by side."""
    cut = [
        tensor.split([band.width(group.kinds[kind].counts[number]) for group in groups], 1)
        for number, (band, tensor) in enumerate(zip(BANDS, bands, strict=True))
    ]
    return [list(mine) for mine in zip(*cut, strict=True)]


def _first_bytes(
    blocks: NDArray[np.int64],
    widths: Sequence[Sequence[int]],
    counts: Sequence[int] | NDArray[np.int64],
    kind: int,
    ahead: int = 0,
) -> NDArray[np.int64]:
    """(B and one, bands): the bytes of a row in each band; and of each sample where in the samples' pieces the row with
    the number 0 would begin, as rows of a kind are numbered through all samples.

    Args:
        blocks, widths: of their segment, see `_blocks`.
        counts: rows of that kind that each sample has.
        kind: its number.
        ahead: the number of the first row.
    """
    starts = (blocks.cumsum() - blocks.reshape(-1)).reshape(blocks.shape)[:, kind]
    own, rows = np.array([widths[kind]], np.int64), np.asarray(counts, np.int64)
    return np.concatenate([own, starts - (ahead + rows.cumsum() - rows)[:, None] * own])


def _begins(blocks: NDArray[np.int64], widths: Sequence[Sequence[int]], rows: Rows, kind: int) -> Tensor:
    """(n, bands) int64, where in the samples' pieces each row of a kind begins; see `_first_bytes`."""
    device = rows.sample.device
    table = to_device(torch.from_numpy(_first_bytes(blocks, widths, rows.counts, kind)), device)
    return table[1:][rows.sample] + torch.arange(len(rows.sample), device=device)[:, None] * table[0]


def _widest(groups: Sequence[Group]) -> int:
    """Channels of the widest group."""
    return max(len(group.exponent) for group in groups)


def _columns(groups: Sequence[Group], kind: int) -> list[tuple[int, ...]]:
    """By group, how many bytes of each band the groups ahead of it take."""
    ends = [accumulate(widths, initial=0) for widths in zip(*(_widths([group], kind) for group in groups), strict=True)]
    return list(zip(*ends, strict=True))[:-1]


def _chunks(basis: Basis, index: Tensor, mean: Tensor, position: Tensor, at_once: int) -> Iterator[tuple[slice, Chunk]]:
    """The rows `index` in runs of `at_once`, with the slice of them that each is.

    Args:
        basis: that they are in.
        index, mean: see `Rows`.
        position: of all rows of the segment.
        at_once: rows of a run.
    """
    for start in range(0, len(index), at_once):
        rows = slice(start, start + at_once)
        yield rows, Chunk.of(basis, index[rows], mean[rows], position)


def _even(rows: int, most: int) -> int:
    """The length of runs that are about equally long: a short one at the end takes more time for each of its rows."""
    runs = max(1, -(-rows // most))
    return max(1, -(-rows // runs))


def _layers(batch: SegmentBatch, group: Group) -> slice:
    first = group.first_layer - batch.first_layer
    return slice(first, first + group.layers)


def _moved(basis: Basis, device: torch.device) -> Basis:
    def move(part: Components) -> Components:
        return Components(part.counts, **{name: getattr(part, name).to(device) for name in TENSORS})

    groups = tuple(
        replace(group, exponent=group.exponent.to(device), image=move(group.image), text=move(group.text))
        for group in basis.groups
    )
    return replace(basis, cosine=basis.cosine.to(device), sine=basis.sine.to(device), groups=groups)
