"""What is stored of a batch of samples: coded keys and values, embeddings, a teacher's words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from trio_ray.kv.embeds import Embeds, EmbedsBatch
from trio_ray.kv.encode import Allocate, CodedBatch, CodedPrefix
from trio_ray.model.targets import Targets, TargetsBatch


@dataclass(frozen=True)
class StoredSample:
    """What is stored of a sample, in host memory. `coded` has no segments where keys and values are not stored, and
    nothing is to be stored where the prefill was not `finite`.
    """

    coded: CodedPrefix
    embeds: Embeds | None = None
    targets: Targets | None = None
    finite: bool = True


@dataclass(frozen=True)
class StoredBatch:
    """What is stored of a batch, as the device leaves it or on its way to the host.

    `finite` (B,) bool says whose prefill came out in numbers: a codec hides where one has not.
    """

    coded: CodedBatch
    finite: Tensor
    embeds: EmbedsBatch | None = None
    targets: TargetsBatch | None = None

    def tensors(self) -> Iterator[Tensor]:
        """All of its tensors."""
        yield self.finite
        for part in (self.coded, self.embeds, self.targets):
            if part is not None:
                yield from part.tensors()

    def on_host(self, allocate: Allocate) -> StoredBatch:
        """The same in host memory; see `CodedBatch.on_host`."""

        def copy(tensor: Tensor) -> Tensor:
            return allocate(tuple(tensor.shape), tensor.dtype).copy_(tensor, non_blocking=True)

        return StoredBatch(
            self.coded.on_host(allocate),
            copy(self.finite),
            None if self.embeds is None else self.embeds.copied(copy),
            None if self.targets is None else self.targets.copied(copy),
        )

    def split(self) -> list[StoredSample]:
        """The samples' shares; their tensors are views."""
        coded = self.coded.split()
        embeds = self.embeds.split() if self.embeds else [None] * len(coded)
        targets = self.targets.split() if self.targets else [None] * len(coded)
        return [StoredSample(*parts) for parts in zip(coded, embeds, targets, self.finite.tolist(), strict=True)]
