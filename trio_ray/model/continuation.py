"""Decoding on from stored prefixes, one or many of different lengths at once.

The layers of a prefix differ in length, so each run of layers has a buffer of its own, as long as its longest sequence
and no longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.model.decoder import Decoder


class Continuation:
    """The state of B sequences that go on from their prefixes.

    Args:
        decoder: the model that made the prefixes.
        prefixes: B of them, made with one schedule.
        room: most tokens that will be appended to any of them.
    """

    def __init__(self, decoder: Decoder, prefixes: Sequence[Prefix], room: int) -> None:
        self._decoder = decoder
        self._device = next(decoder.embed.parameters()).device
        self._lengths = [prefix.length for prefix in prefixes]
        self._runs = [
            _Run.load([prefix.segments[number] for prefix in prefixes], room, self._device)
            for number in range(len(prefixes[0].segments))
        ]

    @torch.no_grad()
    def extend(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens (at least one to each sequence) and return (B, vocabulary) fp32 logits for what follows
        them.
        """
        counts = [len(run) for run in tokens]
        width = max(counts)
        steps = torch.arange(width, device=self._device)
        ids = torch.tensor([[*run, *[0] * (width - len(run))] for run in tokens], device=self._device)
        real = steps < torch.tensor(counts, device=self._device)[:, None]
        hidden = self._decoder.embed(ids).flatten(0, 1)
        position = torch.tensor(self._lengths, device=self._device)[:, None] + steps
        tables = self._decoder.tables(hidden, position.flatten())
        for run in self._runs:
            step = run.begin(steps, real)
            for slot in range(run.layers):
                hidden = self._decoder.run_layer(
                    run.first_layer + slot,
                    hidden,
                    tables,
                    lambda *qkv, step=step, slot=slot: step.attend(slot, *qkv),
                )
            run.finish(counts)
        self._lengths = [length + count for length, count in zip(self._lengths, counts, strict=True)]
        last = torch.arange(len(counts)) * width + torch.tensor(counts) - 1
        return self._decoder.logits(hidden[last.to(self._device)]).float()


@dataclass
class _Run:
    """Keys and values, (layers, B, capacity, kv_heads, D), of layers that hold the same rows; `used` rows by
    sequence.
    """

    first_layer: int
    keys: Tensor
    values: Tensor
    used: list[int]

    @classmethod
    def load(cls, segments: Sequence[Segment], room: int, device: torch.device) -> _Run:
        used = [segment.rows for segment in segments]
        layers, _, heads, dim = segments[0].keys.shape
        shape = (layers, len(segments), max(used) + room, heads, dim)
        # Zeros, not `empty`: masked slots still enter the weighted sum, and 0 * NaN is NaN.
        keys, values = (torch.zeros(shape, dtype=segments[0].keys.dtype, device=device) for _ in range(2))
        for number, segment in enumerate(segments):
            keys[:, number, : segment.rows] = segment.keys.to(device, non_blocking=True)
            values[:, number, : segment.rows] = segment.values.to(device, non_blocking=True)
        return cls(segments[0].first_layer, keys, values, used)

    @property
    def layers(self) -> int:
        return self.keys.shape[0]

    def begin(self, steps: Tensor, real: Tensor) -> _Step:
        """Where the new rows go, (B, q) of them of which some are padding, and what each of them sees."""
        slots = torch.tensor(self.used, device=steps.device)[:, None] + steps
        length = max(self.used) + len(steps)
        visible = torch.arange(min(length, self.keys.shape[2]), device=steps.device) <= slots[..., None]
        sequence = torch.arange(len(self.used), device=steps.device)[:, None].expand_as(slots)
        return _Step(self, real.flatten(), sequence[real], slots[real], visible)

    def finish(self, counts: Sequence[int]) -> None:
        self.used = [used + count for used, count in zip(self.used, counts, strict=True)]


@dataclass(frozen=True)
class _Step:
    """One extension of a run. `visible` (B, q, length) bool; `sequence`, `slots`: (n,) where the real new rows are
    written.
    """

    run: _Run
    real: Tensor
    sequence: Tensor
    slots: Tensor
    visible: Tensor

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Write the new rows of one layer, then attend over all: (B * q, heads, D) in and out."""
        keys, values = self.run.keys[layer], self.run.values[layer]
        keys[self.sequence, self.slots] = key[self.real].to(keys.dtype)
        values[self.sequence, self.slots] = value[self.real].to(values.dtype)
        batch, width, length = self.visible.shape
        result = F.scaled_dot_product_attention(
            query.unflatten(0, (batch, width)).transpose(1, 2),
            keys[:, :length].transpose(1, 2).to(query.dtype),
            values[:, :length].transpose(1, 2).to(query.dtype),
            attn_mask=self.visible[:, None],
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return result.transpose(1, 2).flatten(0, 1)


def generate(
    decoder: Decoder, prefixes: Sequence[Prefix], max_new_tokens: int, stop_tokens: Sequence[int] = ()
) -> list[list[int]]:
    """Greedy answers, all prefixes in one batch. Each ends with its stop token, or after `max_new_tokens`.

    The first token is the one stored with the prefix: the prefill has already computed it.
    """
    answers = [[prefix.first_token] for prefix in prefixes]
    if max_new_tokens < 2:
        return [answer[:max_new_tokens] for answer in answers]
    state = Continuation(decoder, prefixes, room=max_new_tokens - 1)
    running = [answer[-1] not in stop_tokens for answer in answers]
    for _ in range(max_new_tokens - 1):
        if not any(running):
            break
        following = state.extend([[answer[-1]] for answer in answers]).argmax(-1).tolist()
        for number, token in enumerate(following):
            if running[number]:
                answers[number].append(token)
                running[number] = token not in stop_tokens
    return answers
