"""What runs against each other: the same samples, once a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any


class Contestant(ABC):
    """A way to prefill the samples."""

    @abstractmethod
    def batches(self, number: int) -> Sequence[Any]:
        """All samples in batches for pass `number`, made before the clock starts; no pass finds what another left."""

    @abstractmethod
    def run(self, batch: Any) -> object:
        """Prefill one batch; need not wait for the device. What it returns is thrown away."""

    def finish(self) -> None:  # noqa: B027
        """Do what is left at the end of a pass, by default nothing; belongs to the pass's time."""
