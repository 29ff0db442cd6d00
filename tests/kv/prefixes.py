"""Random prefixes, as a prefill would leave them: views into a larger batch's tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trio_ray.kv.prefix import Prefix, Segment

KEY, FINGERPRINT = "shard-7/0003", "0123456789abcdef0123456789abcdef"


def random_prefix(
    dtype: torch.dtype = torch.float32,
    rows: Sequence[int] = (30, 17, 9),
    layers: Sequence[int] = (1, 2, 3),
    kv_heads: int = 2,
    head_dim: int = 8,
    seed: int = 0,
) -> Prefix:
    """A prefix of `len(rows)` segments; its first prune point keeps fewer tokens than there are rows."""
    torch.manual_seed(seed)

    def states(count: int, length: int) -> Tensor:
        return torch.randn(count, length + 5, kv_heads, head_dim).to(dtype)[:, 2 : 2 + length]

    segments, first = [], 0
    for count, length in zip(layers, rows, strict=True):
        segments.append(Segment(first, states(count, length), states(count, length)))
        first += count
    kept = tuple(torch.arange(length - 8, dtype=torch.int32) * 3 for length in rows[1:])
    return Prefix(
        length=rows[0], segments=tuple(segments), kept=kept,
        top_ids=torch.tensor([7, 2, 40], dtype=torch.int32), top_logprobs=torch.tensor([-0.1, -2.5, -4.0]),
    )  # fmt: skip


def assert_same(ours: Prefix, truth: Prefix) -> None:
    """Bit for bit."""
    assert ours.length == truth.length
    assert len(ours.segments) == len(truth.segments)
    for a, b in zip(ours.segments, truth.segments, strict=True):
        assert a.first_layer == b.first_layer
        for x, y in ((a.keys, b.keys), (a.values, b.values)):
            assert x.dtype == y.dtype
            # Bytes, not values: NaN and -0.0 must come back too.
            assert torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))
    assert [kept.tolist() for kept in ours.kept] == [kept.tolist() for kept in truth.kept]
    assert all(kept.dtype == torch.int32 for kept in ours.kept)
    assert torch.equal(ours.top_ids, truth.top_ids)
    assert torch.equal(ours.top_logprobs, truth.top_logprobs)
