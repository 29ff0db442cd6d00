"""The transform codec's kernels give the bytes that torch gives on the CPU: on a GPU, and in Triton's
interpreter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from tests.interpreter import on_devices
from tests.kv.bases import LEADS, make_basis, make_segments
from tests.kv.prefixes import batch_of
from trio_ray.kv.batch import SegmentBatch
from trio_ray.kv.codecs import transform
from trio_ray.kv.codecs.transform import TENSOR, Transform, TransformSpec, row_coder
from trio_ray.kv.codecs.transform_bands import BANDS, PackedPlaces
from trio_ray.kv.codecs.transform_basis import MAX_FOLD, MAX_MULTIPLIER, ROTATION_BITS, STEP_BITS, Components, Group
from trio_ray.kv.codecs.transform_integers import Chunk, TorchRowCoder
from trio_ray.kv.prefix import Segment


@dataclass(frozen=True)
class Case:
    """`rows` of a kind with so many components in each band, in layers of 2 heads of `dim` channels."""

    counts: tuple[int, int, int, int] = (3, 40, 71, 163)
    rows: int = 45
    kind: int = 1
    layers: int = 1
    dim: int = 8
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        counts, dtype = "-".join(map(str, self.counts)), str(self.dtype).removeprefix("torch.")
        return f"bands{counts}-rows{self.rows}-kind{self.kind}-layers{self.layers}-dim{self.dim}-{dtype}"


CASES = [
    *(Case(rows=rows, kind=kind) for kind in (0, 1) for rows in (0, 1, 15, 32, 33)),
    *(Case(counts=counts) for counts in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1), (0, 33, 0, 6), (64, 0, 1, 160)]),
    *(Case(dim=dim, layers=3) for dim in (4, 12)),
    *(Case(dtype=dtype) for dtype in (torch.float16, torch.float32)),
]
ODD = [math.nan, math.inf, -math.inf, -0.0, 1e-40, 6e4, -6e4]
TOTAL = 70
"""Rows of the states that some are chosen from."""


@on_devices
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_groups_rows_become_the_same_bytes(case: Case, device: str) -> None:
    """Symbols far beyond their band and odd numbers too; what lies between the rows' places stays as it was."""
    from trio_ray.kv.kernels.transform import KernelRowCoder

    generator = torch.Generator().manual_seed(0)
    group = _group(case, generator)
    keys, values = (_states(case, generator) for _ in range(2))
    chunk = _chunk(case, generator)
    places = _places(case, generator)
    rounding = 1 << (STEP_BITS - 1)
    TorchRowCoder(group, case.kind, rounding).put(keys, values, chunk, places)
    ours = replace(places, stored=torch.full_like(places.stored, UNTOUCHED, device=device), rows=places.rows.to(device))
    moved = Chunk(*(x.to(device) for x in (chunk.index, chunk.mean, chunk.cosine, chunk.sine)))
    coder = KernelRowCoder.of(_moved(group, device), case.kind, rounding)
    coder.put(keys.to(device), values.to(device), moved, ours)
    if case.rows > 1 and sum(case.counts):
        assert len(places.stored.unique()) > 2
    different = (ours.stored.cpu() != places.stored).nonzero().flatten().tolist()
    assert not different, f"{len(different)} of {len(places.stored)} bytes, first {different[:8]}"


@on_devices
def test_a_whole_batch_becomes_the_same_bytes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several groups, chunks and samples, leads, and samples without images or with nothing else."""
    from trio_ray.kv.kernels.transform import KernelRowCoder

    codec, on_device = (Transform(TransformSpec(basis="0" * 32), make_basis(0.02)) for _ in range(2))
    for batch in (*make_segments(9, seed=6), *map(_with_lopsided_samples, make_segments(4, seed=5))):
        truth = codec.encode(batch)
        moved = {name: getattr(batch, name).to(device) for name in ("keys", "values", "position", "text")}
        with monkeypatch.context() as patch:
            patch.setattr(transform, "CHUNK", 40 * 64)
            patch.setattr(transform, "GPU_CHUNK", 40 * 64)
            if device == "cpu":
                patch.setattr(transform, "row_coder", KernelRowCoder.of)
            found = on_device.encode(replace(batch, **moved))
        assert found.pieces == truth.pieces
        assert torch.equal(found.tensors[TENSOR].cpu(), truth.tensors[TENSOR])


@pytest.mark.gpu
def test_a_gpu_codes_by_the_kernels() -> None:
    from trio_ray.kv.kernels.transform import KernelRowCoder

    group = _moved(_group(Case(), torch.Generator().manual_seed(0)), "cuda")
    assert isinstance(row_coder(group, 0, 0), KernelRowCoder)


UNTOUCHED = 99


def _group(case: Case, generator: torch.Generator) -> Group:
    """Whole numbers up to their limits, so that symbols of every size come out."""
    channels = case.layers * 4 * case.dim
    image, text = (_components(case.counts, channels, means, generator) for means in (1, 1 + LEADS))
    exponent = torch.randint(6, 13, (channels,), generator=generator, dtype=torch.int8)
    return Group(0, case.layers, exponent, image, text)


def _components(counts: tuple[int, ...], channels: int, means: int, generator: torch.Generator) -> Components:
    components = sum(counts)

    def whole(least: int, most: int, *size: int) -> Tensor:
        return torch.randint(least, most + 1, size, generator=generator)

    limits = torch.cat([torch.full((count,), band.limit) for count, band in zip(counts, BANDS, strict=True)])
    # Sums are some millions: a multiplier makes them symbols around the limit of their band.
    multiplier = (limits.double() * 2.0 ** (STEP_BITS - 23) * 2 ** (whole(0, 40, components) / 10 - 2)).long()
    matrix = whole(-127, 127, components, channels)
    matrix[:1] = 127
    return Components(
        counts=counts,
        center=whole(-999, 999, channels).int(),
        fold=(2 ** (12 + whole(0, 60, channels) / 10)).int().clamp(1, MAX_FOLD),
        matrix=matrix.to(torch.int8),
        multiplier=multiplier.clamp(1, MAX_MULTIPLIER).int(),
        offset=whole(-(1 << 20), 1 << 20, means, components),
        mean=torch.zeros(means, channels),
    )


def _states(case: Case, generator: torch.Generator) -> Tensor:
    """(layers, TOTAL, 2, dim), a view into more rows and layers; some numbers are odd."""
    states = torch.randn(case.layers + 1, TOTAL + 2, 2, case.dim, generator=generator).exp2()
    states *= torch.randint(-1, 2, states.shape, generator=generator)
    for place, odd in enumerate(ODD):
        states.view(-1)[place :: 97 + 2 * place] = odd
    return states.to(case.dtype)[1:, 1:-1]


def _chunk(case: Case, generator: torch.Generator) -> Chunk:
    index = torch.randperm(TOTAL, generator=generator)[: case.rows].sort().values
    angle = torch.rand(case.rows, case.dim // 2, generator=generator) * 2 * math.pi
    cosine, sine = ((table * 2.0**ROTATION_BITS).round().to(torch.int16) for table in (angle.cos(), angle.sin()))
    return Chunk(index, torch.arange(case.rows) % (1 + LEADS * case.kind), cosine, sine)


def _places(case: Case, generator: torch.Generator) -> PackedPlaces:
    """Rows in any order, with bytes of other groups on both sides."""
    widths = [band.width(count) + 7 for count, band in zip(case.counts, BANDS, strict=True)]
    starts = list(accumulate((width * case.rows for width in widths), initial=0))
    order = torch.randperm(case.rows, generator=generator)
    rows = torch.stack([start + width * order for (start, _), width in zip(pairwise(starts), widths, strict=True)], 1)
    return PackedPlaces(torch.full((starts[-1],), UNTOUCHED, dtype=torch.uint8), rows, (2, 5, 0, 7))


def _moved(group: Group, device: str) -> Group:
    def move(part: Components) -> Components:
        names = ("center", "fold", "matrix", "multiplier", "offset", "mean")
        return replace(part, **{name: getattr(part, name).to(device) for name in names})

    return replace(group, exponent=group.exponent.to(device), image=move(group.image), text=move(group.text))


def _with_lopsided_samples(batch: SegmentBatch) -> SegmentBatch:
    """The second sample without image rows, the third with nothing else."""
    segments = batch.split()
    for number, rows in ((1, segments[1].text), (2, ~segments[2].text)):
        of = segments[number]
        segments[number] = Segment(
            of.first_layer, of.keys[:, rows], of.values[:, rows], of.position[rows], of.text[rows]
        )
    return batch_of(segments)
