"""What a basis does to prefixes that it was not fitted to: their bytes, their errors, and the answer's distribution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch

from trio_ray.calibration.calibrate import Answering
from trio_ray.calibration.codec_loss import containers_of, store_and_load
from trio_ray.calibration.corpus import DrawnPrefix
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.prefix import Prefix
from trio_ray.model.continuation import Continuation

BATCH = 16
"""Prefixes that are restored together."""


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
        uncertainty: standard error of that mean, nats.
        agreement: share of equal first answer tokens.
    """

    samples: int
    stored: float
    plain: float
    values: float
    error: tuple[float, float]
    divergence: float
    uncertainty: float
    agreement: float

    @property
    def most(self) -> float:
        """An upper bound of the divergence that holds in all likelihood: few samples are measured, and a few of them
        make up most of it.
        """
        return self.divergence + 2 * self.uncertainty

    @property
    def ratio(self) -> float:
        """How many times smaller than 16 bit the containers are, with everything counted."""
        return self.plain / self.stored

    def __str__(self) -> str:
        keys, values = self.error
        return (
            f"{self.samples} held-out samples: {self.stored:,.0f} bytes instead of {self.plain:,.0f}, "
            f"{self.ratio:.1f} times smaller, {8 * self.stored / self.values:.3f} bits a value\n"
            f"squared error {keys:.2%} of keys, {values:.2%} of values; first answer token: "
            f"divergence {self.divergence:.4f} nats (+- {2 * self.uncertainty:.4f}), {self.agreement:.1%} equal"
        )


def stored_ratio(model: Answering, codec: Codec, drawn: Sequence[DrawnPrefix]) -> float:
    """How many times smaller than 16 bit the containers of prefixes are."""
    stored = sum(
        len(data) for _, before in _on_device(model, drawn) for _, data in containers_of(PrefixBatch.of(before), codec)
    )
    return sum(_plain_bytes(item.prefix) for item in drawn) / stored


def measure_held_out(model: Answering, codec: Codec, drawn: Sequence[DrawnPrefix]) -> HeldOut:
    """Store and load prefixes on the model's device, and predict each one's first answer token from what came back."""
    stored = 0
    squares = torch.zeros(2, 2, dtype=torch.float64)
    nats: list[float] = []
    equal = 0
    for items, before in _on_device(model, drawn):
        loaded = store_and_load(PrefixBatch.of(before), codec)
        stored += sum(loaded.sizes)
        for old, new in zip(before, loaded.prefixes, strict=True):
            squares += _squares(old, new)
        tails = [[item.last_token] for item in items]
        was, now = (
            Continuation(model.decoder, prefixes, room=1).extend(tails).log_softmax(-1)
            for prefixes in (before, loaded.prefixes)
        )
        nats += (was.exp() * (was - now)).sum(-1).tolist()
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
        divergence=fmean(nats),
        uncertainty=pstdev(nats) / max(1, count - 1) ** 0.5,
        agreement=equal / count,
    )


def _on_device(model: Answering, drawn: Sequence[DrawnPrefix]) -> Iterator[tuple[Sequence[DrawnPrefix], list[Prefix]]]:
    """A few prefixes at a time, each with its restored form on the model's device."""
    for start in range(0, len(drawn), BATCH):
        items = drawn[start : start + BATCH]
        yield items, [item.prefix.on_device(model.device) for item in items]


def _plain_bytes(prefix: Prefix) -> int:
    return 2 * sum(segment.keys.numel() + segment.values.numel() for segment in prefix.segments)


def _squares(old: Prefix, new: Prefix) -> torch.Tensor:
    """(2, 2): for keys and for values, the squared error and the sum of squares."""
    sums = torch.zeros(2, 2, dtype=torch.float64)
    for was, now in zip(old.segments, new.segments, strict=True):
        for row, (x, y) in enumerate(((was.keys, now.keys), (was.values, now.values))):
            sums[row, 0] += (x.double() - y.double()).square().sum().cpu()
            sums[row, 1] += x.double().square().sum().cpu()
    return sums
