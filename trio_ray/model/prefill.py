"""The pruned prefill over packed rows: decoder layers, and between them the selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trio_ray.kv.batch import PrefixBatch, SegmentBatch
from trio_ray.method.method import Method
from trio_ray.method.rows import PackedRows
from trio_ray.model.attention import PackedAttention
from trio_ray.model.decoder import Decoder


@dataclass(frozen=True)
class Prefill:
    """What a pruned prefill leaves of a batch of B samples.

    Attributes:
        rows: layout of the rows as they entered, before any pruning.
        segments: one per run of layers between prune points; their structure depends on the schedule alone.
        left: per prune point the layout of the rows behind it.
        logits: (B, vocabulary) fp32, for the first answer token.
        scores: per prune point the selector's (T,) fp32 over the rows that were there before it; None where nothing
            had to be dropped.
    """

    rows: PackedRows
    segments: tuple[SegmentBatch, ...]
    left: tuple[PackedRows, ...]
    logits: Tensor
    scores: tuple[Tensor | None, ...]

    def prefixes(self, top_k: int) -> PrefixBatch:
        """What is stored of the batch, with the `top_k` most likely first answer tokens; nothing waits for the
        device.
        """
        logprobs, ids = self.logits.log_softmax(-1).topk(min(top_k, self.logits.shape[-1]))
        return PrefixBatch(
            lengths=self.rows.ends,
            segments=self.segments,
            kept=tuple(rows.image_index[rows.image_rows].int() for rows in self.left),
            kept_counts=tuple(rows.image_counts for rows in self.left),
            top_ids=ids.int(),
            top_logprobs=logprobs,
        )


@torch.no_grad()
def pruned_prefill(
    decoder: Decoder,
    hidden: Tensor,
    rows: PackedRows,
    method: Method,
    budgets: Sequence[Sequence[int]],
    attention: PackedAttention,
) -> Prefill:
    """Run all layers over packed embeddings, dropping image rows at the prune points.

    Args:
        decoder: the model's decoder.
        hidden: (T, d) input embeddings of all samples, image features in place.
        rows: their layout.
        method: where rows are dropped, which ones, and what becomes of their positions.
        budgets: per sample, how many image rows are left behind each prune point.
        attention: causal attention over packed rows.
    """
    edges = (*method.schedule.prune_points, decoder.depth)
    whole, segments, left, scores = rows, [], [], []
    hidden, segment = _run_segment(decoder, hidden, rows, range(edges[0]), attention)
    if edges[0] > 0:
        segments.append(segment)
    for point, (start, stop) in enumerate(pairwise(edges)):
        keep = [budget[point] for budget in budgets]
        hidden, rows, score = prune(decoder, hidden, rows, start, keep, method)
        hidden, segment = _run_segment(decoder, hidden, rows, range(start, stop), attention)
        segments.append(segment)
        left.append(rows)
        scores.append(score)
    logits = decoder.logits(hidden[rows.last_rows]).float()
    return Prefill(whole, tuple(segments), tuple(left), logits, tuple(scores))


def prune(
    decoder: Decoder, hidden: Tensor, rows: PackedRows, layer: int, keep: Sequence[int], method: Method
) -> tuple[Tensor, PackedRows, Tensor | None]:
    """Drop image rows before layer `layer`, so that `keep[s]` are left of each sample.

    Returns:
        The rows that stay, (T', d), their layout, and the selector's (T,) scores; None where nothing had to be dropped.
    """
    if list(keep) == list(rows.image_counts):
        return hidden, rows, None
    proxy = decoder.proxy(layer, decoder.tables(hidden, rows.position))
    selection = method.selector.select(hidden, rows, proxy, keep)
    left = rows.keep(selection.rows, keep, method.positions)
    return hidden[selection.rows], left, selection.score


def _run_segment(
    decoder: Decoder, hidden: Tensor, rows: PackedRows, layers: range, attention: PackedAttention
) -> tuple[Tensor, SegmentBatch]:
    shape = (len(layers), rows.total, decoder.kv_heads, decoder.head_dim)
    keys, values = hidden.new_empty(shape), hidden.new_empty(shape)
    tables = decoder.tables(hidden, rows.position)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return attention(query, key, value, rows, scale)

    for slot, layer in enumerate(layers):
        hidden = decoder.run_layer(layer, hidden, tables, attend, keys[slot], values[slot])
    return hidden, SegmentBatch(
        first_layer=layers.start,
        keys=keys,
        values=values,
        lengths=rows.lengths,
        image_counts=rows.image_counts,
        leads=rows.leads,
        position=rows.position.int(),
        text=~rows.is_image,
    )
