"""Samples side by side. Prefixes differ in length, so a batch is a list of them and nothing is padded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trio_ray.cache.fetched import Row, StoredBytes
from trio_ray.cache.pruned_cache import StoredPrefix
from trio_ray.cache.unreadable import UnreadablePrefix
from trio_ray.kv.prefix import Prefix

Sample = StoredPrefix | StoredBytes


@dataclass(frozen=True)
class Batch:
    """Samples, and what is not among them.

    Attributes:
        samples: restored, or as they are stored.
        skipped: why samples that belong here are missing; empty unless they may be skipped.
        state: of a `PrefixStream`: give it to `load_state_dict` to go on behind this batch.
    """

    samples: list[Sample]
    skipped: list[UnreadablePrefix]
    state: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def rows(self) -> list[Row]:
        """The samples' rows."""
        return [sample.row for sample in self.samples]

    @property
    def prefixes(self) -> list[Prefix]:
        """The samples' prefixes, ready to be decoded from together.

        Raises:
            TypeError: the samples are still as they are stored.
        """
        return [_prefix(sample) for sample in self.samples]


def collate(samples: Iterable[Sample | UnreadablePrefix]) -> Batch:
    """The `collate_fn` of a `DataLoader` over a `PrefixDataset`."""
    batch = Batch([], [])
    for sample in samples:
        if isinstance(sample, UnreadablePrefix):
            batch.skipped.append(sample)
        else:
            batch.samples.append(sample)
    return batch


def _prefix(sample: Sample) -> Prefix:
    if isinstance(sample, StoredPrefix):
        return sample.prefix
    raise TypeError(f"sample {sample.row['key']!r} is not restored; pass the batches through `prefetch`")
