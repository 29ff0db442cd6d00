"""The pruned prefill over packed rows: decoder layers, and between them the selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.method.rows import PackedRows
from trio_ray.method.selector import Selector
from trio_ray.model.attention import PackedAttention
from trio_ray.model.decoder import Decoder


@dataclass(frozen=True)
class PackedSegment:
    """K and V, (layers, T, kv_heads, D), of a run of layers for the whole batch, with the layout of their T rows."""

    first_layer: int
    rows: PackedRows
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Prefill:
    """What a pruned prefill leaves of a batch of B samples.

    Attributes:
        segments: one per run of layers between prune points; their structure depends on the schedule alone.
        logits: (B, vocabulary) fp32, for the first answer token.
        scores: per prune point the selector's (T,) fp32 over the rows that were there before it; None where nothing
            had to be dropped.
    """

    segments: tuple[PackedSegment, ...]
    logits: Tensor
    scores: tuple[Tensor | None, ...]

    def on_host(self) -> Prefill:
        """The same with keys and values in host memory: one copy a tensor, into pinned memory where there is a GPU."""
        segments = [replace(s, keys=_to_host(s.keys), values=_to_host(s.values)) for s in self.segments]
        if self.logits.is_cuda:
            torch.cuda.current_stream(self.logits.device).synchronize()
        return replace(self, segments=tuple(segments))


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


@torch.no_grad()
def pruned_prefill(
    decoder: Decoder,
    hidden: Tensor,
    rows: PackedRows,
    prune_points: Sequence[int],
    budgets: Sequence[Sequence[int]],
    selector: Selector,
    attention: PackedAttention,
) -> Prefill:
    """Run all layers over packed embeddings, dropping image rows at the prune points.

    Args:
        decoder: the model's decoder.
        hidden: (T, d) input embeddings of all samples, image features in place.
        rows: their layout.
        prune_points: layers before which rows are dropped, ascending.
        budgets: per sample, how many image rows are left behind each prune point.
        selector: which ones.
        attention: causal attention over packed rows.
    """
    edges = (*prune_points, decoder.depth)
    segments, scores = [], []
    hidden, segment = _run_segment(decoder, hidden, rows, range(edges[0]), attention)
    if edges[0] > 0:
        segments.append(segment)
    for point, (start, stop) in enumerate(pairwise(edges)):
        keep = [budget[point] for budget in budgets]
        hidden, rows, score = prune(decoder, hidden, rows, start, keep, selector)
        hidden, segment = _run_segment(decoder, hidden, rows, range(start, stop), attention)
        segments.append(segment)
        scores.append(score)
    last = torch.tensor(rows.offsets[1:], device=hidden.device) - 1
    return Prefill(tuple(segments), decoder.logits(hidden[last]).float(), tuple(scores))


def prune(
    decoder: Decoder, hidden: Tensor, rows: PackedRows, layer: int, keep: Sequence[int], selector: Selector
) -> tuple[Tensor, PackedRows, Tensor | None]:
    """Drop image rows before layer `layer`, so that `keep[s]` are left of each sample.

    Returns:
        The rows that stay, (T', d), their layout, and the selector's (T,) scores; None where nothing had to be dropped.
    """
    if list(keep) == list(rows.image_counts):
        return hidden, rows, None
    proxy = decoder.proxy(layer, decoder.tables(hidden, rows.position))
    selection = selector.select(hidden, rows, proxy, keep)
    left = rows.keep(selection.rows, keep, renumber=selector.positions == "compact")
    return hidden[selection.rows], left, selection.score


def _run_segment(
    decoder: Decoder, hidden: Tensor, rows: PackedRows, layers: range, attention: PackedAttention
) -> tuple[Tensor, PackedSegment]:
    shape = (len(layers), rows.total, decoder.kv_heads, decoder.head_dim)
    keys, values = hidden.new_empty(shape), hidden.new_empty(shape)
    tables = decoder.tables(hidden, rows.position)
    for slot, layer in enumerate(layers):

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, slot: int = slot) -> Tensor:
            keys[slot], values[slot] = key, value
            return attention(query, key, value, rows, scale)

        hidden = decoder.run_layer(layer, hidden, tables, attend)
    return hidden, PackedSegment(layers.start, rows, keys, values)


def split_prefixes(prefill: Prefill, top_k: int) -> list[Prefix]:
    """Cut a batch's prefill into the samples' prefixes; keys and values stay views of the batch's tensors."""
    logprobs, ids = prefill.logits.log_softmax(-1).topk(min(top_k, prefill.logits.shape[-1]))
    logprobs, ids = logprobs.cpu(), ids.int().cpu()
    points = len(prefill.scores)
    kept = [_kept_indices(segment.rows) for segment in prefill.segments[len(prefill.segments) - points :]]
    prefixes = []
    for sample, length in enumerate(prefill.segments[0].rows.ends):
        segments = tuple(
            Segment(packed.first_layer, packed.keys[:, start:stop], packed.values[:, start:stop])
            for packed in prefill.segments
            for start, stop in [packed.rows.offsets[sample : sample + 2]]
        )
        prefixes.append(
            Prefix(length, segments, tuple(indices[sample] for indices in kept), ids[sample], logprobs[sample])
        )
    return prefixes


def _kept_indices(rows: PackedRows) -> tuple[Tensor, ...]:
    """Per sample (K,) int32 on the CPU: original numbers of the image tokens that `rows` still has."""
    return rows.image_index[rows.image_rows].int().cpu().split(list(rows.image_counts))
