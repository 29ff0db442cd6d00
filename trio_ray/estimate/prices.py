"""Prices that the user gives. None is built in, and a cost whose price is not given is not computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prices:
    """Prices in one currency, called $ here; None where it was not given.

    Attributes:
        gpu_per_hour: of one replica's GPU (or machine).
        storage_per_gb_month: 1 GB is 10^9 bytes.
        months: how long the cache is kept.
    """

    gpu_per_hour: float | None = None
    storage_per_gb_month: float | None = None
    months: float = 1.0

    def compute(self, seconds: float) -> float | None:
        """$ of so many replica-seconds."""
        return None if self.gpu_per_hour is None else seconds / 3600 * self.gpu_per_hour

    def storage(self, stored_bytes: float) -> float | None:
        """$ of keeping so many bytes for `months`."""
        return (
            None if self.storage_per_gb_month is None else stored_bytes / 1e9 * self.storage_per_gb_month * self.months
        )
