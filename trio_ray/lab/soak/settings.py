"""What a soak does; light to import."""

from __future__ import annotations

from dataclasses import dataclass

ACTS = ("driver", "replica", "writer", "node", "stopped", "disk_full")
"""SIGKILL of the driver, a replica, a process that stores, all of a node; SIGSTOP of a replica; a disk that is full for
some seconds."""


@dataclass(frozen=True)
class Soak:
    """What to do.

    Attributes:
        minutes: during which things are killed; the job that is running then is brought to its end.
        seed: of kills and faults.
        share: of the S3 requests that are faulty, 0 to 1.
        interval_s: seconds between two kills.
        silence_limit_s: of the jobs; longer than a replica takes to load.
        shards: of a job.
        per_shard: samples of a shard.
        acts: what is done beside faulty requests, of `ACTS`.
    """

    minutes: float = 30.0
    seed: int = 0
    share: float = 0.4
    interval_s: float = 10.0
    silence_limit_s: float = 30.0
    shards: int = 24
    per_shard: int = 40
    acts: tuple[str, ...] = ACTS
