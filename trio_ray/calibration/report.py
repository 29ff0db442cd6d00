"""What a basis does to prefixes that it was not fitted to: bytes, error, and the answer's distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trio_ray.calibration.corpus import DrawnPrefix
from trio_ray.evaluation.codecs import store_and_load
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codec import Codec
from trio_ray.kv.prefix import Prefix
from trio_ray.model.continuation import Continuation
from trio_ray.model.replica import Replica

BATCH = 16
"""Prefixes decoded at once."""


@dataclass(frozen=True)
class HeldOut:
    """Means over held-out samples.

    Attributes:
        samples: how many there were.
        stored: bytes of a container.
        plain: bytes of its keys and values in 16 bit.
        values: numbers that they are.
        error: of keys and of values, squared error as a share of the squares.
        divergence: of the first answer token's distribution, nats; the prompt's last row computed over coded rows.
        agreement: share of equal first answer tokens.
    """

    samples: int
    stored: float
    plain: float
    values: float
    error: tuple[float, float]
    divergence: float
    agreement: float

    @property
    def ratio(self) -> float:
        """How many times smaller than 16 bit, everything counted."""
        return self.plain / self.stored

    def __str__(self) -> str:
        keys, values = self.error
        return (
            f"{self.samples} held-out samples: {self.stored:,.0f} bytes instead of {self.plain:,.0f}, "
            f"{self.ratio:.1f} times smaller, {8 * self.stored / self.values:.3f} bits a value\n"
            f"squared error {keys:.2%} of keys, {values:.2%} of values; first answer token: "
            f"divergence {self.divergence:.4f} nats, {self.agreement:.1%} equal"
        )


def stored_ratio(codec: Codec, drawn: Sequence[DrawnPrefix]) -> float:
    """How many times smaller than 16 bit the containers of prefixes are."""
    loaded = store_and_load(PrefixBatch.of([item.prefix for item in drawn]), codec)
    return sum(_plain_bytes(item.prefix) for item in drawn) / sum(loaded.sizes)


def measure_held_out(replica: Replica, codec: Codec, drawn: Sequence[DrawnPrefix]) -> HeldOut:
    """Store and load prefixes, and predict each one's first answer token from what came back."""
    stored = 0
    squares = torch.zeros(2, 2, dtype=torch.float64)
    divergence, equal = 0.0, 0
    for start in range(0, len(drawn), BATCH):
        items = drawn[start : start + BATCH]
        before = [item.prefix for item in items]
        loaded = store_and_load(PrefixBatch.of(before), codec)
        stored += sum(loaded.sizes)
        for old, new in zip(before, loaded.prefixes, strict=True):
            squares += _squares(old, new)
        tails = [[item.last_token] for item in items]
        was, now = (
            Continuation(replica.decoder, prefixes, room=1).extend(tails).log_softmax(-1)
            for prefixes in (before, loaded.prefixes)
        )
        divergence += float((was.exp() * (was - now)).sum())
        equal += int((was.argmax(-1) == now.argmax(-1)).sum())
    plain = sum(_plain_bytes(item.prefix) for item in drawn)
    error = (squares[:, 0] / squares[:, 1].clamp_min(torch.finfo(torch.float64).tiny)).tolist()
    count = len(drawn)
    return HeldOut(
        samples=count,
        stored=stored / count,
        plain=plain / count,
        values=plain / 2 / count,
        error=(error[0], error[1]),
        divergence=divergence / count,
        agreement=equal / count,
    )


def _plain_bytes(prefix: Prefix) -> int:
    return 2 * sum(segment.keys.numel() + segment.values.numel() for segment in prefix.segments)


def _squares(old: Prefix, new: Prefix) -> torch.Tensor:
    """(2, 2): of keys and of values the squared error and the squares."""
    sums = torch.zeros(2, 2, dtype=torch.float64)
    for was, now in zip(old.segments, new.segments, strict=True):
        for row, (x, y) in enumerate(((was.keys, now.keys), (was.values, now.values))):
            sums[row, 0] += (x.double() - y.double()).square().sum()
            sums[row, 1] += x.double().square().sum()
    return sums
