"""What stops one sample, and what ends a shard early.

Neither ever stops the job: both end as quarantine rows.
"""

from __future__ import annotations

from typing import Literal

from trio_ray.errors import TrioRayError
from trio_ray.source.sample import Reason


class Rejected(TrioRayError):
    """One sample cannot be used.

    `reason` is what the quarantine table stores, `detail` what a person reads.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class ShardDamaged(TrioRayError):
    """Nothing can be read of a shard from here on; the samples before this point are sound."""

    def __init__(self, reason: Literal[Reason.SHARD_TRUNCATED, Reason.SHARD_UNREADABLE], detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
