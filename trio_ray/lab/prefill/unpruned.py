"""What pruning is compared with: the plain Hugging Face prefill of whole prompts, at its best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trio_ray.lab.prefill.contestant import Contestant
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.tensors import attempt, measure

MOST_SAMPLES = 64
GAIN = 1.02
"""A doubled batch that is not this much faster ends the search."""


@dataclass(frozen=True)
class PaddedBatch:
    """B prompts on the host, padded on the right: `ids` (B, S), `tiles` (n, 3, tile, tile) uint8 of all images in
    order, `sizes` (B, 2) their heights and widths, `last` (B,) each prompt's last row.
    """

    ids: Tensor
    tiles: Tensor
    sizes: Tensor
    last: Tensor

    @classmethod
    def of(cls, samples: Sequence[PreparedSample]) -> PaddedBatch:
        width = max(sample.rows for sample in samples)
        images = [image for sample in samples for image in sample.images]
        return cls(
            ids=torch.tensor([[*sample.input_ids, *[0] * (width - sample.rows)] for sample in samples]),
            tiles=torch.cat([image.tiles for image in images]),
            sizes=torch.tensor([[image.height, image.width] for image in images]),
            last=torch.tensor([sample.rows for sample in samples]) - 1,
        )


@dataclass(frozen=True)
class Unpruned(Contestant):
    """`model(**inputs, use_cache=True)` over batches of samples of about one length.

    It gets what helps it: samples sorted by length; padding on the right, which causal attention never looks at, so
    that no mask keeps it from the fast kernels; tiles joined beforehand and normalised on the device.

    Attributes:
        replica: whose Hugging Face model, tiles and dtype are used, nothing else of it.
        samples: all of them.
        batch: samples at a time.
    """

    replica: Replica
    samples: Sequence[PreparedSample]
    batch: int

    def batches(self, number: int) -> list[PaddedBatch]:
        """See `Contestant`."""
        ordered = sorted(self.samples, key=lambda sample: sample.rows)
        return [PaddedBatch.of(ordered[at : at + self.batch]) for at in range(0, len(ordered), self.batch)]

    @torch.no_grad()
    def run(self, batch: PaddedBatch) -> Tensor:
        """(B, vocabulary) logits for the first answer token."""
        device, model = self.replica.device, self._model
        output = model(
            input_ids=batch.ids.to(device),
            pixel_values=self.pixels(batch),
            image_sizes=batch.sizes,
            use_cache=True,
            logits_to_keep=batch.last.to(device),
        )
        return output.logits.diagonal(dim1=0, dim2=1).T  # of each sample its own last row

    @torch.no_grad()
    def encode(self, batch: PaddedBatch) -> None:
        """The vision tower's part of `run`, alone."""
        self._model.model.get_image_features(self.pixels(batch), batch.sizes)

    def pixels(self, batch: PaddedBatch) -> Tensor:
        """(n, 3, tile, tile) in the model's dtype, on the device."""
        tiles = batch.tiles.to(self.replica.device, non_blocking=True)
        return self.replica.tiler.normalise(tiles).to(self.replica.dtype)

    @property
    def _model(self) -> Any:
        return self.replica.model


def find_batch(replica: Replica, samples: Sequence[PreparedSample]) -> dict[int, float]:
    """Samples a second by batch size: 1, 2, 4... until memory ends it or nothing is gained; the best is the answer.

    The batches are of the samples of middle length, repeated where there are too few.
    """
    ordered = sorted(samples, key=lambda sample: sample.rows)
    rates: dict[int, float] = {}
    size = 1
    while size <= MOST_SAMPLES:
        first = max(0, (len(ordered) - size) // 2)
        members = [ordered[(first + number) % len(ordered)] for number in range(size)]
        rate = attempt(replica.device, partial(_rate, replica, members))
        if rate is None:
            break
        best = max(rates.values(), default=0.0)
        rates[size] = rate
        if rate < GAIN * best:
            break
        size *= 2
    return rates


def _rate(replica: Replica, samples: Sequence[PreparedSample]) -> float:
    contestant = Unpruned(replica, samples, len(samples))
    (batch,) = contestant.batches(0)
    contestant.run(batch)
    return len(samples) / min(measure(replica.device, lambda: contestant.run(batch)).seconds for _ in range(2))
