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
        minutes: during which things are killed, at least; the job that is running then is brought to its end.
        most_minutes: during which things are killed, at most, while something has happened less than `at_least` times.
        at_least: times that every act and every fault should happen.
        seed: of kills and faults.
        share: of the S3 requests that are faulty, 0 to 1.
        interval_s: seconds between two kills.
        silence_limit_s: of the jobs; longer than a replica takes to load.
        shards: of a job.
        per_shard: samples of a shard.
        acts: what is done beside faulty requests, of `ACTS`.
        acts_per_job: after so many a job may end in peace, so that the kinds of output take turns (an act may be
            possible with one of them alone, and a job that is killed all the time takes very long).
    """

    minutes: float = 30.0
    most_minutes: float = 45.0
    at_least: int = 1
    seed: int = 0
    share: float = 0.4
    interval_s: float = 10.0
    silence_limit_s: float = 30.0
    shards: int = 24
    per_shard: int = 40
    acts: tuple[str, ...] = ACTS
    acts_per_job: int = 12
