"""The choice of the next token from logits, on the device: greedy, or sampled with a seed of the request's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trio_ray.tensors import on_device


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_p: only the most likely tokens whose chances add up to this are drawn from; 1 draws from all of them.
        seed: the same seed draws the same tokens from the same logits, whatever else is in the batch.

    Raises:
        ValueError: a value out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")


GREEDY = Sampling()


def choose(logits: Tensor, sampling: Sequence[Sampling], steps: Sequence[int]) -> Tensor:
    """The next token of each sequence, (B,) int64. Nothing waits for the device.

    Args:
        logits: (B, vocabulary).
        sampling: of each sequence.
        steps: how many tokens of the answer each sequence has already.
    """
    best = logits.float().argmax(-1)
    drawn = [number for number, how in enumerate(sampling) if how.temperature > 0]
    if not drawn:
        return best
    device = logits.device
    uniform = on_device([_uniform(sampling[n].seed, steps[n]) for n in drawn], device, torch.float64)
    temperature = on_device([sampling[n].temperature for n in drawn], device, torch.float32)
    top_p = on_device([sampling[n].top_p for n in drawn], device, torch.float32)
    rows = on_device(drawn, device)
    return best.index_copy(0, rows, _draw(logits[rows].float(), temperature, top_p, uniform))


def _draw(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """(n,) tokens: the first, in descending order of chances, at which their running sum exceeds `uniform` of the
    chances that `top_p` leaves.
    """
    below_best = logits - logits.amax(-1, keepdim=True)  # so that no temperature overflows
    chances, tokens = (below_best / temperature[:, None]).softmax(-1).sort(stable=True, dim=-1, descending=True)
    running = chances.double().cumsum(-1)
    ahead = running - chances
    mass = torch.where(ahead < top_p[:, None], running, 0.0).amax(-1)
    number = (running <= (uniform * mass)[:, None]).sum(-1, keepdim=True).clamp_max(logits.shape[-1] - 1)
    return tokens.gather(-1, number).squeeze(-1)


def _uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that depends on seed and step alone (splitmix64)."""
    mask = (1 << 64) - 1
    state = (seed * 0xD1342543DE82EF95 + step * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return ((state ^ (state >> 31)) >> 11) / (1 << 53)
