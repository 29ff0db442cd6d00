"""The pruned prefill over packed rows: decoder layers, and between them the selection.

Usually a dropped row is not computed any more. Where the first layers run on all rows (`Schedule.full_layers`), a
dropped row is only not stored: rows behind it have read it in those layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trio_ray.kv.batch import PrefixBatch, SegmentBatch
from trio_ray.method.method import Method
from trio_ray.method.representation import mean_tail_queries, represent_dropped
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
    (prefill,) = pruned_prefills(decoder, hidden, rows, [(method, budgets)], attention)
    return prefill


@torch.no_grad()
def pruned_prefills(
    decoder: Decoder,
    hidden: Tensor,
    rows: PackedRows,
    choices: Sequence[tuple[Method, Sequence[Sequence[int]]]],
    attention: PackedAttention,
) -> list[Prefill]:
    """The prefills of several methods, with their budgets, over the same rows; see `pruned_prefill`.

    A layer that runs on all rows, whatever a method stores of them, runs once for all methods. What each stores is held
    at the same time.
    """
    whole = _Stream(decoder, attention, hidden, rows)
    runs = [_Run(method, budgets, whole, rows.image_counts, rows) for method, budgets in choices]
    for layer in range(decoder.depth):
        for run in runs:
            run.enter(layer)
        sharing = [run for run in runs if run.stream is whole]
        for group in (sharing, *([run] for run in runs if run.stream is not whole)):
            if group:
                _run_layer(layer, group)
    return [run.result(rows) for run in runs]


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


_BeforeAttention = Callable[[Tensor, Tensor, float], None]
"""Is given a layer's (T, heads, D) queries and (T, kv_heads, D) keys, which it may change in place, and the scale."""


@dataclass
class _Stream:
    """Rows on their way through the layers.

    Attributes:
        decoder: the model's decoder.
        attention: causal attention over packed rows.
        hidden: (T, d) the rows that the next layer runs on.
        rows: their layout.
    """

    decoder: Decoder
    attention: PackedAttention
    hidden: Tensor
    rows: PackedRows

    def run_layer(self, layer: int, keys: Tensor, values: Tensor, before: _BeforeAttention | None = None) -> None:
        """Run one layer, and write its keys and values, (T, kv_heads, D) each."""
        rows = self.rows
        tables = self.decoder.tables(self.hidden, rows.position)

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            if before is not None:
                before(query, key, scale)
            return self.attention(query, key, value, rows, scale)

        self.hidden = self.decoder.run_layer(layer, self.hidden, tables, attend, keys, values)

    def new_keys_and_values(self, layers: int, rows: int) -> tuple[Tensor, Tensor]:
        """Two uninitialised (layers, rows, kv_heads, D)."""
        keys = self.hidden.new_empty(layers, rows, self.decoder.kv_heads, self.decoder.head_dim)
        return keys, torch.empty_like(keys)


@dataclass
class _Run:
    """A method's prefill under way.

    Attributes:
        method: which rows are dropped, and from which layer on the dropped ones are not computed either.
        budgets: see `pruned_prefill`.
        stream: the rows that the next layer runs on. Other methods may share them.
        image_tokens: of each sample, before any is dropped.
        left: layout of the rows that are not dropped, which are what is stored.
        places: (T',) int64, where in the stream these are; None where they are all of it.
        segments, layouts, scores: see `Prefill`, as far as the run has come.
    """

    method: Method
    budgets: Sequence[Sequence[int]]
    stream: _Stream
    image_tokens: tuple[int, ...]
    left: PackedRows
    places: Tensor | None = None
    segments: list[SegmentBatch] = field(default_factory=list)
    layouts: list[PackedRows] = field(default_factory=list)
    scores: list[Tensor | None] = field(default_factory=list)

    def enter(self, layer: int) -> None:
        """Before a layer: drop rows at a prune point, and stop computing what is dropped behind the layers that run on
        all rows.
        """
        self._skip_dropped(layer)
        points = self.method.schedule.prune_points
        if layer in points:
            self._prune(layer, [budget[points.index(layer)] for budget in self.budgets])
            self._skip_dropped(layer)
        if layer in points or layer == 0:
            self._begin_segment(layer, next((p for p in points if p > layer), self.stream.decoder.depth))

    def slot(self, layer: int) -> tuple[Tensor, Tensor]:
        """(T', kv_heads, D) keys and values of the layer in what is stored."""
        segment = self.segments[-1]
        return segment.keys[layer - segment.first_layer], segment.values[layer - segment.first_layer]

    @property
    def represents(self) -> bool:
        """Whether what is stored now stands for rows that were dropped."""
        return self.method.dropped == "represented" and self.left.image_counts != self.image_tokens

    def represent(self, keys: Tensor, queries: Tensor, scale: float) -> None:
        """Let (T', kv_heads, D) keys of `left` weigh as much as all rows did; see `represent_dropped`."""
        represent_dropped(keys, self.left, self.image_tokens, queries, scale)

    def store(self, layer: int, all_keys: Tensor, all_values: Tensor) -> None:
        """Store what is left of the layer's keys and values, (T, kv_heads, D) each, of the whole stream."""
        keys, values = self.slot(layer)
        places = slice(None) if self.places is None else self.places
        keys.copy_(self._at_new_positions(all_keys[places]))
        values.copy_(all_values[places])

    def result(self, rows: PackedRows) -> Prefill:
        """Behind the last layer; `rows` is the layout before any pruning."""
        stream = self.stream
        logits = stream.decoder.logits(stream.hidden[stream.rows.last_rows]).float()
        return Prefill(rows, tuple(self.segments), tuple(self.layouts), logits, tuple(self.scores))

    def _prune(self, layer: int, keep: Sequence[int]) -> None:
        """Drop image rows before layer `layer`, so that `keep[s]` are left of each sample."""
        hidden = self.stream.hidden if self.places is None else self.stream.hidden[self.places]
        selection = select(self.stream.decoder, hidden, self.left, layer, keep, self.method)
        if selection is not None:
            self.left = self.left.keep(selection.rows, keep, self.method.positions)
            self.places = selection.rows if self.places is None else self.places[selection.rows]
        self.scores.append(None if selection is None else selection.score)
        self.layouts.append(self.left)

    def _begin_segment(self, layer: int, stop: int) -> None:
        """Make room for the layers `layer` to `stop - 1`, between which nothing is dropped."""
        left = self.left
        keys, values = self.stream.new_keys_and_values(stop - layer, left.total)
        segment = SegmentBatch(
            first_layer=layer,
            keys=keys,
            values=values,
            lengths=left.lengths,
            image_counts=left.image_counts,
            leads=left.leads,
            position=left.position.int(),
            text=~left.is_image,
        )
        self.segments.append(segment)

    def _skip_dropped(self, layer: int) -> None:
        """Behind the layers that run on all rows, go on with those that are left."""
        if self.places is not None and layer >= self.method.schedule.full_layers:
            self.stream = replace(self.stream, hidden=self.stream.hidden[self.places], rows=self.left)
            self.places = None

    def _at_new_positions(self, keys: Tensor) -> Tensor:
        """(T', kv_heads, D) rotated keys of the rows in `places`, turned from their positions in the stream to those in
        `left`; RoPE turns by differences.
        """
        if self.places is None or self.method.positions == "original":
            return keys
        return self.stream.decoder.turned(keys, self.left.position - self.stream.rows.position[self.places])


def _run_layer(layer: int, runs: Sequence[_Run]) -> None:
    """Run one layer over a stream, and store for each run that shares it what is left of the keys and values."""
    stream = runs[0].stream
    rows, kv_heads = stream.rows, stream.decoder.kv_heads
    if len(runs) == 1 and runs[0].places is None:
        (run,) = runs

        def represent(query: Tensor, key: Tensor, scale: float) -> None:
            run.represent(key, mean_tail_queries(query, rows, kv_heads), scale)

        stream.run_layer(layer, *run.slot(layer), represent if run.represents else None)
        return
    seen: list[tuple[Tensor, float]] = []

    def note(query: Tensor, key: Tensor, scale: float) -> None:
        seen.append((mean_tail_queries(query, rows, kv_heads), scale))

    keys, values = stream.new_keys_and_values(1, rows.total)
    stream.run_layer(layer, keys[0], values[0], note if any(run.represents for run in runs) else None)
    for run in runs:
        run.store(layer, keys[0], values[0])
        if run.represents:
            # The rows behind the image keep their positions, so their queries fit the keys at the new ones.
            run.represent(run.slot(layer)[0], *seen[0])
