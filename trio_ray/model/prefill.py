"""The pruned prefill over packed rows: decoder layers, and between them the selection.

Usually a dropped row is not computed any more. Where the first layers run on all rows (`Schedule.full_layers`), a
dropped row is only not stored: rows behind it have read it in those layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trio_ray.kv.batch import PrefixBatch, SegmentBatch
from trio_ray.method.method import Method
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.selector import Selection
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
        scores: per prune point the selector's (T,) fp32 over the rows that were left before it; None where nothing
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
    run = _Run(decoder, attention, method, hidden, rows, rows)
    segments, left, scores = [], [], []
    if edges[0] > 0:
        segments.append(run.segment(range(edges[0])))
    for point, (start, stop) in enumerate(pairwise(edges)):
        scores.append(run.prune(start, [budget[point] for budget in budgets]))
        segments.append(run.segment(range(start, stop)))
        left.append(run.left)
    logits = decoder.logits(run.hidden[run.rows.last_rows]).float()
    return Prefill(rows, tuple(segments), tuple(left), logits, tuple(scores))


def select(
    decoder: Decoder, hidden: Tensor, rows: PackedRows, layer: int, keep: Sequence[int], method: Method
) -> Selection | None:
    """Choose the image rows that stay before layer `layer`, `keep[s]` of each sample; None where all of them do.

    `hidden` (T, d) is the input of that layer, `rows` its layout.
    """
    if list(keep) == list(rows.image_counts):
        return None
    proxy = decoder.proxy(layer, decoder.tables(hidden, rows.position))
    return method.selector.select(hidden, rows, proxy, keep)


@dataclass
class _Run:
    """A prefill under way.

    Attributes:
        decoder: the model's decoder.
        attention: causal attention over packed rows.
        method: which rows are dropped, and from which layer on the dropped ones are not computed either.
        hidden: (T, d) the rows that the next layer runs on.
        rows: their layout.
        left: layout of the rows that are not dropped, which are what is stored.
        places: (T',) int64, where in `hidden` these are; None where they are all of it.
    """

    decoder: Decoder
    attention: PackedAttention
    method: Method
    hidden: Tensor
    rows: PackedRows
    left: PackedRows
    places: Tensor | None = None

    def prune(self, layer: int, keep: Sequence[int]) -> Tensor | None:
        """Drop image rows before layer `layer`, so that `keep[s]` are left of each sample.

        Returns:
            The selector's scores of the rows that were left before; None where nothing had to be dropped.
        """
        self._skip_dropped(layer)
        hidden = self.hidden if self.places is None else self.hidden[self.places]
        selection = select(self.decoder, hidden, self.left, layer, keep, self.method)
        if selection is None:
            return None
        self.left = self.left.keep(selection.rows, keep, self.method.positions)
        self.places = selection.rows if self.places is None else self.places[selection.rows]
        return selection.score

    def segment(self, layers: range) -> SegmentBatch:
        """Run these layers, between which nothing is dropped; gives what is stored of them."""
        left, heads = self.left, (self.decoder.kv_heads, self.decoder.head_dim)
        keys = self.hidden.new_empty(len(layers), left.total, *heads)
        values = torch.empty_like(keys)
        for slot, layer in enumerate(layers):
            self._skip_dropped(layer)
            if self.places is None:
                self._run_layer(layer, keys[slot], values[slot])
                continue
            all_keys = self.hidden.new_empty(self.rows.total, *heads)
            all_values = torch.empty_like(all_keys)
            self._run_layer(layer, all_keys, all_values)
            keys[slot] = self._at_new_positions(all_keys[self.places])
            values[slot] = all_values[self.places]
        return SegmentBatch(
            first_layer=layers.start,
            keys=keys,
            values=values,
            lengths=left.lengths,
            image_counts=left.image_counts,
            leads=left.leads,
            position=left.position.int(),
            text=~left.is_image,
        )

    def _skip_dropped(self, layer: int) -> None:
        """Behind the layers that run on all rows, go on with those that are left."""
        if self.places is not None and layer >= self.method.schedule.full_layers:
            self.hidden, self.rows, self.places = self.hidden[self.places], self.left, None

    def _run_layer(self, layer: int, keys: Tensor, values: Tensor) -> None:
        rows = self.rows
        tables = self.decoder.tables(self.hidden, rows.position)

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            return self.attention(query, key, value, rows, scale)

        self.hidden = self.decoder.run_layer(layer, self.hidden, tables, attend, keys, values)

    def _at_new_positions(self, keys: Tensor) -> Tensor:
        """(T', kv_heads, D) rotated keys of the rows in `places`, turned from their positions in `rows` to those in
        `left`; RoPE turns by differences.
        """
        if self.method.positions == "original":
            return keys
        assert self.places is not None
        return self.decoder.turned(keys, self.left.position - self.rows.position[self.places])
