"""The kernels of the inverse transform give what torch gives, in whatever rows they are told to write."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.interpreter import HALF, by_kernels, on_devices
from tests.kv.bases import make_basis, make_segments
from trio_ray.kv.batch import SegmentBatch, SegmentShape
from trio_ray.kv.codecs import transform
from trio_ray.kv.codecs.codec import SegmentToRestore
from trio_ray.kv.codecs.transform import Transform, TransformSpec
from trio_ray.kv.target import RowTarget


def segment_of(batch: SegmentBatch, tensors: dict[str, Tensor], target: RowTarget) -> SegmentToRestore:
    return SegmentToRestore(tensors, SegmentShape.of(batch), batch.position.numpy(), batch.text.numpy(), target)


@on_devices
@pytest.mark.parametrize("dtype", [HALF, torch.float32], ids=str)
def test_rows_are_those_of_torch_wherever_they_go(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Transform(TransformSpec(basis="0" * 32), make_basis(0.02))
    batches = make_segments(3, seed=6, dtype=dtype)
    truths = []
    for batch in batches:
        target = RowTarget.fresh(SegmentShape.of(batch), torch.device("cpu"))
        codec.restore([segment_of(batch, codec.encode(batch).tensors, target)])
        truths.append(target)
    coded = [codec.encode(batch).tensors for batch in batches]
    by_kernels(monkeypatch, transform)
    segments = []
    for batch, truth, tensors in zip(batches, truths, coded, strict=True):
        shapes = SegmentShape.of(batch)
        layers, rows, heads, dim = truth.keys.shape
        room = torch.full((2, layers, rows + 20, heads, dim), 7.0, dtype=dtype, device=device)
        # The samples lie in another order, with rows of others between them.
        starts = [rows + 11 - sum(shape.rows + 3 for shape in shapes[: number + 1]) for number in range(len(shapes))]
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        segments.append(segment_of(batch, moved, RowTarget(room[0], room[1], tuple(starts))))
    codec.restore(segments)
    exact = dtype == torch.float32
    for segment, truth in zip(segments, truths, strict=True):
        target, rows = segment.target, torch.from_numpy(segment.target.rows(segment.shapes)).to(device)
        for found, wanted in ((target.keys, truth.keys), (target.values, truth.values)):
            tolerance = {"rtol": 1e-4, "atol": 1e-4} if exact else {"rtol": 1e-2, "atol": 1e-2}
            torch.testing.assert_close(found[:, rows].cpu(), wanted, **tolerance)
            untouched = torch.ones(found.shape[1], dtype=torch.bool, device=device)
            untouched[rows] = False
            assert (found[:, untouched] == 7).all()
