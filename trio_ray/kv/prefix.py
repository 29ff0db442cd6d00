"""A pruned prefix: what a later process needs to go on where the prefill stopped."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.kv.layer_rows import LayerRun, layer_rows_svg


class NoFirstToken(TrioRayError):
    """An answer was wanted from a prefix of scope image, behind which nothing has been asked."""


@dataclass(frozen=True, repr=False)
class Segment:
    """A run of layers that hold the same rows.

    Attributes:
        first_layer: number of its first layer.
        keys, values: (layers, rows, kv_heads, head_dim). Keys are rotated, each at its row's position.
        position: (rows,) int32, ascending: right-aligned, or where the row was in the unpruned prompt
            (`Selector.positions`).
        text: (rows,) bool, True for text rows, which are never dropped.
    """

    first_layer: int
    keys: Tensor
    values: Tensor
    position: Tensor
    text: Tensor

    def __repr__(self) -> str:
        last = self.first_layer + self.layers - 1
        return f"Segment(layers {self.first_layer} to {last}: {self.rows} rows, {int(self.text.sum())} of them text)"

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.keys.shape[0]

    @property
    def rows(self) -> int:
        """Rows that each of its layers holds."""
        return self.keys.shape[1]

    def on_device(self, device: torch.device) -> Segment:
        """The same on a device."""
        moved = (tensor.to(device) for tensor in (self.keys, self.values, self.position, self.text))
        return Segment(self.first_layer, *moved)


@dataclass(frozen=True, repr=False)
class Prefix:
    """One sample's prompt after a pruned prefill.

    Attributes:
        length: rows of the prompt as it entered the decoder: unpruned, or as an encoder step left it. The next token
            has this position in every layer.
        lead: text rows ahead of the first image row in that prompt. A pruned segment does not tell: it may begin with
            more text rows, where a prompt has several images and the first one lost all its rows.
        segments: in order, covering all layers.
        kept: per prune point (K,) int32, indices into the sample's original image tokens, ascending.
        top_ids: (k,) int32, the first answer token's most likely values, best first; k is 0 where the prefix ends with
            the image and a question has yet to follow.
        top_logprobs: (k,) fp32, their log-probabilities.
    """

    length: int
    lead: int
    segments: tuple[Segment, ...]
    kept: tuple[Tensor, ...]
    top_ids: Tensor
    top_logprobs: Tensor

    def __repr__(self) -> str:
        rows = [segment.rows for segment in self.segments]
        keys = self.segments[0].keys
        return (
            f"Prefix({self.length} rows before pruning; {sum(segment.layers for segment in self.segments)} layers hold "
            f"{min(rows)} to {max(rows)}; {str(keys.dtype).removeprefix('torch.')} on {keys.device})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: how many rows each layer holds."""
        runs = []
        for segment in self.segments:
            text = int(segment.text.sum())
            runs.append(LayerRun(segment.first_layer, segment.layers, text, segment.rows - text))
        return f"<p>{escape(repr(self))}</p>{layer_rows_svg(runs, escape(repr(self)))}"

    @property
    def first_token(self) -> int:
        """The greedy first answer token. Raises `NoFirstToken` where a question has yet to follow."""
        if not len(self.top_ids):
            raise NoFirstToken("the prefix ends with its image: ask a question behind it (Replica.ask)")
        return int(self.top_ids[0])

    @property
    def kv_bytes(self) -> int:
        """Bytes of all keys and values as they are in memory."""
        return sum(t.numel() * t.element_size() for segment in self.segments for t in (segment.keys, segment.values))

    def on_device(self, device: torch.device) -> Prefix:
        """The same on a device."""
        return Prefix(
            self.length,
            self.lead,
            tuple(segment.on_device(device) for segment in self.segments),
            tuple(kept.to(device) for kept in self.kept),
            self.top_ids.to(device),
            self.top_logprobs.to(device),
        )
