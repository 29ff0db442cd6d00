"""Given tokens behind prefixes, one or many of different lengths at once: what the model says of each of them.

This is for tokens that are known: calibration, targets of true answers, studies. The engine (`decode.engine`) writes
answers; both run the same passes over the same pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.kv.prefix import Prefix
from trio_ray.model.decode.forward import Forward
from trio_ray.model.decode.pool import KVPool, PoolShape
from trio_ray.model.decode.rows import SlotState, SlotTable
from trio_ray.model.decoder import Decoder
from trio_ray.tensors import on_device


class ContextFull(TrioRayError):
    """Tokens would stand behind the last position that the model knows."""


class Continuation:
    """The state of B sequences that go on from their prefixes.

    Args:
        decoder: the model that made the prefixes.
        prefixes: B of them, made with one schedule.
        room: most tokens that will be appended to any of them.
    """

    def __init__(self, decoder: Decoder, prefixes: Sequence[Prefix], room: int) -> None:
        weight = next(decoder.embed.parameters())
        self._decoder, self._device = decoder, weight.device
        self._lengths = [prefix.length for prefix in prefixes]
        runs = list(zip(*(prefix.segments for prefix in prefixes), strict=True))
        wanted = [sum(segment.rows + room for segment in segments) for segments in runs]
        self._pool = KVPool(PoolShape.of(prefixes[0], weight.dtype), self._device, wanted)
        self._table = SlotTable(len(runs), len(prefixes), self._device)
        self._forward = Forward(decoder, self._pool, self._table)
        self._longest = [max(segment.rows for segment in segments) + room for segments in runs]
        states = []
        for prefix in prefixes:
            held, own = self._pool.add(prefix), self._pool.take_own(room)
            states.append(SlotState(held.starts, held.rows, own.starts, 0, prefix.length))
        self._slots = list(range(len(prefixes)))
        self._room = [room] * len(prefixes)
        self._table.write(self._slots, states)

    @property
    def lengths(self) -> list[int]:
        """Rows of each sequence so far, those dropped by pruning included: the positions of the next tokens."""
        return list(self._lengths)

    def extend(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens (at least one to each sequence) and return (B, vocabulary) fp32 logits for what follows
        them.
        """
        hidden = self._append(tokens)
        last = on_device([stop - 1 for stop in accumulate(map(len, tokens))], self._device)
        return self._logits(hidden[last])

    def score(self, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
        """Append tokens (at least one to each sequence) and return, for each sequence, (its new tokens, vocabulary)
        fp32 logits for what follows each of them.
        """
        return [self._logits(rows) for rows in self._append(tokens).split([len(run) for run in tokens])]

    def top_k(self, tokens: Sequence[Sequence[int]], count: int) -> list[tuple[Tensor, Tensor]]:
        """Append tokens (at least one to each sequence) and return, for each sequence, what most likely follows each of
        them: (its new tokens, count) int32 ids, most likely first, and their fp32 log-probabilities. Never more than
        the vocabulary has.
        """
        best = []
        for rows in self._append(tokens).split([len(run) for run in tokens]):  # one sequence's vocabulary at a time
            all_logprobs = self._logits(rows).log_softmax(-1)
            logprobs, ids = all_logprobs.topk(min(count, all_logprobs.shape[-1]))
            best.append((ids.int(), logprobs))
        return best

    @torch.no_grad()
    def _logits(self, hidden: Tensor) -> Tensor:
        return self._decoder.logits(hidden).float()

    def _append(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """(T, d) last hidden states of all new tokens, one sequence behind the other."""
        counts = [len(run) for run in tokens]
        lengths = [length + count for length, count in zip(self._lengths, counts, strict=True)]
        room = [left - count for left, count in zip(self._room, counts, strict=True)]
        if max(lengths) > self._decoder.context:
            raise ContextFull(
                f"{max(lengths):,} positions are more than the model's context, {self._decoder.context:,}"
            )
        if min(room) < 0:
            raise ValueError(f"a sequence has no room for {-min(room)} of its new tokens")
        rows = self._forward.new_rows(self._slots, counts)
        ids = on_device([token for run in tokens for token in run], self._device)
        hidden = self._forward.hidden(ids, rows, self._longest)
        self._table.own_rows[: len(counts)] += on_device(counts, self._device, torch.int32)
        self._lengths, self._room = lengths, room
        return hidden
