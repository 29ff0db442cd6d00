"""What a student learns from: retained input embeddings, and behind them an answer with what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from trio_ray.distill.loss import IGNORED
from trio_ray.kv.embeds import Embeds
from trio_ray.method.rows import Positions


@dataclass(frozen=True)
class Targets:
    """An answer of a tokens, and what is said of it.

    Attributes:
        answer: (a,) int64, the tokens that the student is led along.
        true: whether they are the true answer.
        ids: (t, k) int64, what the teacher holds most likely in the place of the first t <= a of them.
        logprobs: (t, k) fp32, natural log.
    """

    answer: Tensor
    true: bool
    ids: Tensor
    logprobs: Tensor


@dataclass(frozen=True)
class Example:
    """A sample's key, its retained input embeddings, and its answer."""

    key: str
    embeds: Embeds
    targets: Targets


@dataclass(frozen=True)
class ExampleBatch:
    """B examples side by side, the shorter padded at their ends, where no row that counts sees them.

    Attributes:
        embeds: (B, S, d), rows of the prompts; 0 where a token stands or nothing does.
        tokens: (B, S) int64, the answers' tokens behind them, but the last, which nothing follows; 0 elsewhere.
        is_token: (B, S) bool.
        real: (B, S) bool, False for padding.
        position: (B, S) int64.
        places: (n,) int64, rows of the flattened (B * S) that predict an answer's tokens.
        labels: (n,) int64, the true tokens; `IGNORED` where nobody knows them.
        taught: (m,) int64, the entries of `places` of which the teacher says something,
        ids, logprobs: (m, k), namely this.
    """

    embeds: Tensor
    tokens: Tensor
    is_token: Tensor
    real: Tensor
    position: Tensor
    places: Tensor
    labels: Tensor
    taught: Tensor
    ids: Tensor
    logprobs: Tensor

    def to(self, device: torch.device) -> ExampleBatch:
        """The same on a device."""
        moved: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)
        }
        return ExampleBatch(**moved)

    @property
    def counts(self) -> tuple[int, int]:
        """Tokens with a true label, and tokens of which the teacher says something."""
        return int((self.labels != IGNORED).sum()), len(self.taught)


def collate(examples: Sequence[Example], positions: Positions) -> ExampleBatch:
    """Lay out at least one example.

    Args:
        examples: with teachers' distributions of one k.
        positions: "compact" numbers the rows from 0; "original" leaves each where it was in the unpruned prompt.
    """
    totals = [len(example.embeds.rows) + len(example.targets.answer) - 1 for example in examples]
    shape = (len(examples), max(totals))
    embeds = torch.zeros(*shape, examples[0].embeds.rows.shape[1])
    tokens = torch.zeros(shape, dtype=torch.int64)
    is_token, real = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    position = torch.zeros(shape, dtype=torch.int64)
    places: list[Tensor] = []
    labels: list[Tensor] = []
    taught: list[Tensor] = []
    for number, (example, total) in enumerate(zip(examples, totals, strict=True)):
        answer, held = example.targets.answer, len(example.embeds.rows)
        embeds[number, :held] = example.embeds.rows.float()
        tokens[number, held:total] = answer[:-1]
        is_token[number, held:total] = real[number, :total] = True
        position[number, :total] = _positions(example.embeds, total, positions)
        before = sum(len(rows) for rows in places)
        taught.append(torch.arange(before, before + len(example.targets.ids)))
        places.append(torch.arange(number * shape[1] + held - 1, number * shape[1] + total))
        labels.append(answer if example.targets.true else torch.full_like(answer, IGNORED))
    return ExampleBatch(
        embeds, tokens, is_token, real, position,
        torch.cat(places), torch.cat(labels), torch.cat(taught),
        torch.cat([example.targets.ids for example in examples]),
        torch.cat([example.targets.logprobs for example in examples]),
    )  # fmt: skip


def _positions(embeds: Embeds, total: int, positions: Positions) -> Tensor:
    if positions == "compact":
        return torch.arange(total)
    behind = torch.arange(embeds.length, embeds.length + total - len(embeds.rows))
    return torch.cat([embeds.position.long(), behind])
