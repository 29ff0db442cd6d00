"""From a batch to the samples' coded prefixes: copies go where the caller wants."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.kv.prefixes import codec_of, random_prefix
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.encode import code_batch


def test_every_tensor_is_copied_once_into_memory_of_the_callers() -> None:
    batch = code_batch(PrefixBatch.of([random_prefix(), random_prefix(seed=1)]), codec_of("int4"))
    given: list[Tensor] = []

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        given.append(torch.empty(shape, dtype=dtype))
        return given[-1]

    for ours, truth in zip(batch.on_host(allocate).split(), batch.split(), strict=True):
        tensors = [t for segment in ours.segments for t in segment.values()]
        tensors += [*ours.positions, *ours.texts, *ours.kept, ours.top_ids, ours.top_logprobs]
        storages = {tensor.untyped_storage().data_ptr() for tensor in given}
        assert all(tensor.untyped_storage().data_ptr() in storages for tensor in tensors if tensor.numel())
        for a, b in zip(ours.segments, truth.segments, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in b)
        assert ours.shapes == truth.shapes
        assert torch.equal(ours.top_ids, truth.top_ids)
