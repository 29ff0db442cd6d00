"""Decoding on from stored prefixes, one or many of different lengths at once.

The layers of a prefix differ in length, and so do the prefixes of a batch. Each run of layers has a buffer of its own,
in which sequences of about the same length lie side by side, so that next to nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.kv.prefix import Prefix
from trio_ray.model.decoder import Decoder
from trio_ray.tensors import on_device

_SHORTEST_SHARE = 0.75
"""Sequences attend together where the shortest has at least this share of the longest one's rows: a quarter of a
buffer at most is padding, and lengths that differ fivefold make six groups.
"""


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
        dtype = next(decoder.embed.parameters()).dtype
        self._runs = [
            _Run.load(
                parts[0].first_layer,
                [(part.keys, part.values) for part in parts],
                [part.rows + room for part in parts],
                dtype,
                self._device,
            )
            for parts in zip(*(prefix.segments for prefix in prefixes), strict=True)
        ]

    @torch.no_grad()
    def extend(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens (at least one to each sequence) and return (B, vocabulary) fp32 logits for what follows
        them.
        """
        hidden = self._append(tokens)
        last = on_device([number * hidden.shape[1] + len(run) - 1 for number, run in enumerate(tokens)], self._device)
        return self._decoder.logits(hidden.flatten(0, 1)[last]).float()

    @torch.no_grad()
    def score(self, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
        """Append tokens (at least one to each sequence) and return, for each sequence, (its new tokens, vocabulary)
        fp32 logits for what follows each of them.
        """
        hidden = self._append(tokens)
        return [self._decoder.logits(rows[: len(run)]).float() for rows, run in zip(hidden, tokens, strict=True)]

    @torch.no_grad()
    def top_k(self, tokens: Sequence[Sequence[int]], count: int) -> list[tuple[Tensor, Tensor]]:
        """Append tokens (at least one to each sequence) and return, for each sequence, what most likely follows each of
        them: (its new tokens, count) int32 ids, most likely first, and their fp32 log-probabilities. Never more than
        the vocabulary has.
        """
        hidden = self._append(tokens)
        best = []
        for rows, run in zip(hidden, tokens, strict=True):  # one sequence's whole vocabulary at a time
            all_logprobs = self._decoder.logits(rows[: len(run)]).float().log_softmax(-1)
            logprobs, ids = all_logprobs.topk(min(count, all_logprobs.shape[-1]))
            best.append((ids.int(), logprobs))
        return best

    @property
    def lengths(self) -> list[int]:
        """Rows of each sequence so far, those dropped by pruning included: the positions of the next tokens."""
        return list(self._lengths)

    def keep(self, sequences: Sequence[int]) -> None:
        """Go on with these sequences alone, renumbered in this order; the others' memory is free again."""
        self._lengths = [self._lengths[sequence] for sequence in sequences]
        for number, run in enumerate(self._runs):
            self._runs[number] = run.laid_out(sequences)  # one by one, so that never two copies of everything exist

    def reserve(self, room: int) -> None:
        """Make room for `room` more tokens of every sequence, beyond those it has."""
        everyone = range(len(self._lengths))
        for number, run in enumerate(self._runs):
            if any(used + room > capacity for used, capacity in zip(run.used, run.capacities, strict=True)):
                self._runs[number] = run.laid_out(everyone, room)

    def rewind(self, counts: Sequence[int]) -> None:
        """Take back the last tokens of each sequence, so many as `counts` says; only what was appended can be."""
        self._lengths = [length - count for length, count in zip(self._lengths, counts, strict=True)]
        for run in self._runs:
            run.advance([-count for count in counts])

    def answer(
        self, first: Sequence[int], max_new_tokens: int, stop_tokens: Sequence[int] = (), leave: bool = False
    ) -> list[list[int]]:
        """Go on greedily behind the first answer tokens, (B,). Each answer ends with its stop token, or after
        `max_new_tokens`.

        All sequences go on until the longest answer is done, so that the state stays in step; those that have ended
        read their last token again. With `leave` they drop out of the state whenever half of it has ended.
        """
        answers = [[token] for token in first]
        held = list(range(len(answers)))
        for _ in range(max_new_tokens - 1):
            running = [number for number in held if answers[number][-1] not in stop_tokens]
            if not running:
                break
            if leave and 2 * len(running) <= len(held):
                self.keep([held.index(number) for number in running])
                held = running
            following = self.extend([[answers[number][-1]] for number in held]).argmax(-1).tolist()
            for number, token in zip(held, following, strict=True):
                if answers[number][-1] not in stop_tokens:
                    answers[number].append(token)
        return answers

    def _append(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """(B, most new tokens, d) last hidden states of new tokens, padded behind the shorter runs."""
        counts = [len(run) for run in tokens]
        width = max(counts)
        ids = on_device([token for run in tokens for token in [*run, *[0] * (width - len(run))]], self._device)
        hidden = self._decoder.embed(ids)
        position = on_device(self._lengths, self._device)[:, None] + torch.arange(width, device=self._device)
        tables = self._decoder.tables(hidden, position.flatten())
        shape = (len(hidden), self._decoder.kv_heads, self._decoder.head_dim)
        key, value = hidden.new_empty(shape), hidden.new_empty(shape)
        for run in self._runs:
            step = run.begin(counts)
            for slot in range(run.layers):
                hidden = self._decoder.run_layer(
                    run.first_layer + slot,
                    hidden,
                    tables,
                    lambda *qkv, step=step, slot=slot: step.attend(slot, *qkv),
                    key,
                    value,
                )
            run.advance(counts)
        self._lengths = [length + count for length, count in zip(self._lengths, counts, strict=True)]
        return hidden.unflatten(0, (len(counts), width))


@dataclass(frozen=True)
class _Group:
    """Sequences of about the same length: each has `capacity` rows of the buffer, from `start` on."""

    sequences: tuple[int, ...]
    start: int
    capacity: int

    @property
    def stop(self) -> int:
        """The first row behind them."""
        return self.start + len(self.sequences) * self.capacity

    @classmethod
    def of(cls, capacities: Sequence[int]) -> list[_Group]:
        """Group sequences that need room for so many rows each."""
        groups: list[_Group] = []
        members: list[int] = []
        order = sorted(range(len(capacities)), key=lambda sequence: -capacities[sequence])
        for sequence, following in zip(order, [*order[1:], None], strict=True):
            members.append(sequence)
            longest = capacities[members[0]]
            if following is None or capacities[following] < _SHORTEST_SHARE * longest:
                groups.append(cls(tuple(members), groups[-1].stop if groups else 0, longest))
                members = []
        return groups


@dataclass
class _Run:
    """Keys and values, (layers, rows, kv_heads, D), of layers that hold the same rows.

    Sequence s has the rows from `starts[s]` on: `used[s]` so far, `capacities[s]` at most.
    """

    first_layer: int
    keys: Tensor
    values: Tensor
    groups: list[_Group]
    starts: list[int]
    used: list[int]
    capacities: list[int]

    @classmethod
    def load(
        cls,
        first_layer: int,
        states: Sequence[tuple[Tensor, Tensor]],
        capacities: list[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> _Run:
        """Lay out sequences, each given by its keys and values (layers, rows, kv_heads, D) so far."""
        groups = _Group.of(capacities)
        starts = [0] * len(states)
        for group in groups:
            for place, sequence in enumerate(group.sequences):
                starts[sequence] = group.start + place * group.capacity
        layers, _, heads, dim = states[0][0].shape
        shape = (layers, groups[-1].stop, heads, dim)
        # Zeros, not `empty`: masked rows still enter the weighted sum, and 0 * NaN is NaN.
        keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        for start, (key, value) in zip(starts, states, strict=True):
            keys[:, start : start + key.shape[1]].copy_(key, non_blocking=True)
            values[:, start : start + key.shape[1]].copy_(value, non_blocking=True)
        return cls(first_layer, keys, values, groups, starts, [key.shape[1] for key, _ in states], capacities)

    @property
    def layers(self) -> int:
        return self.keys.shape[0]

    def laid_out(self, sequences: Sequence[int], room: int = 0) -> _Run:
        """The same with these sequences alone, grouped anew, and room for at least `room` more rows of each."""
        rows = [slice(self.starts[sequence], self.starts[sequence] + self.used[sequence]) for sequence in sequences]
        states = [(self.keys[:, own], self.values[:, own]) for own in rows]
        capacities = [max(self.capacities[sequence], self.used[sequence] + room) for sequence in sequences]
        return _Run.load(self.first_layer, states, capacities, self.keys.dtype, self.keys.device)

    def begin(self, counts: Sequence[int]) -> _Step:
        """Where so many new rows of each sequence go, and what each of them sees. Never waits for the device."""
        device, width = self.keys.device, max(counts)
        new = [(sequence, step) for sequence, count in enumerate(counts) for step in range(count)]
        real = on_device([sequence * width + step for sequence, step in new], device)
        rows = on_device([self.starts[sequence] + self.used[sequence] + step for sequence, step in new], device)
        blocks = []
        for group in self.groups:
            longest = min(max(self.used[sequence] for sequence in group.sequences) + width, group.capacity)
            used = on_device([self.used[sequence] for sequence in group.sequences], device)
            last = used[:, None, None] + torch.arange(width, device=device)[:, None]
            visible = torch.arange(longest, device=device) <= last
            blocks.append(_Block(group, on_device(group.sequences, device), visible))
        return _Step(self, width, real, rows, blocks)

    def advance(self, counts: Sequence[int]) -> None:
        """Count rows that were written, or, below zero, that are taken back."""
        self.used = [used + count for used, count in zip(self.used, counts, strict=True)]


@dataclass(frozen=True)
class _Block:
    """A group in one extension. `visible` (n, q, length) bool: which of its rows each new row sees."""

    group: _Group
    sequences: Tensor
    visible: Tensor


@dataclass(frozen=True)
class _Step:
    """One extension of a run by `width` rows a sequence. `real` (n,) numbers those that are no padding, and `rows` (n,)
    says where in the buffer they are written.
    """

    run: _Run
    width: int
    real: Tensor
    rows: Tensor
    blocks: list[_Block]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Write the new rows of one layer, then attend over all: (B * q, heads, D) in and out."""
        keys, values = self.run.keys[layer], self.run.values[layer]
        keys[self.rows] = key[self.real]
        values[self.rows] = value[self.real]
        queries = query.unflatten(0, (-1, self.width))
        out = torch.empty_like(queries)
        for block in self.blocks:
            rows = slice(block.group.start, block.group.stop)
            own_keys, own_values = (x[rows].unflatten(0, (-1, block.group.capacity)) for x in (keys, values))
            out[block.sequences] = _attend(queries[block.sequences], own_keys, own_values, block.visible, scale)
        return out.flatten(0, 1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float) -> Tensor:
    """(n, q, heads, D) queries over (n, capacity, kv_heads, D), of which `visible` (n, q, length) bool are seen.

    Query heads that share keys stand in line as if they were further new rows: so no key is repeated, and every SDPA
    kernel takes it.
    """
    shared = query.shape[2] // keys.shape[2]
    length = visible.shape[2]
    grouped = query.unflatten(2, (-1, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    result = F.scaled_dot_product_attention(
        grouped,
        keys[:, :length].transpose(1, 2),
        values[:, :length].transpose(1, 2),
        attn_mask=visible.repeat(1, shared, 1)[:, None],
        scale=scale,
    )
    return result.unflatten(2, (shared, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def generate(
    decoder: Decoder, prefixes: Sequence[Prefix], max_new_tokens: int, stop_tokens: Sequence[int] = ()
) -> list[list[int]]:
    """Greedy answers, all prefixes in one batch. Each ends with its stop token, or after `max_new_tokens`.

    The first token is the one stored with the prefix: the prefill has already computed it.
    """
    first = [prefix.first_token for prefix in prefixes]
    if max_new_tokens < 2:
        return [[token][:max_new_tokens] for token in first]
    return Continuation(decoder, prefixes, room=max_new_tokens - 1).answer(
        first, max_new_tokens, stop_tokens, leave=True
    )
