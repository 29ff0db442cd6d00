"""What all commit records of a cache say in sum. No table is read for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from trio_ray.store.commits import CommitRecord


@dataclass
class Totals:
    """Sums over committed parts.

    Attributes:
        parts, stored, quarantined: parts, and samples of them.
        shards, complete_shards: shards of which anything is committed, and those whose end is.
        damaged: by shard, how its input file was damaged.
        reasons: bad samples by reason, the most frequent first.
        image_tokens, held_tokens: of the stored samples before pruning, and held as the mean over all layers.
        member_bytes: stored beside the rows.
        file_bytes: of all files, tables and tars.
        device_s: time that devices took, seconds.
        replicas: devices that computed parts.
        started, finished: when the first part began and the last one ended, ISO 8601; None of an empty cache.
    """

    parts: int = 0
    stored: int = 0
    quarantined: int = 0
    shards: int = 0
    complete_shards: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    image_tokens: int = 0
    held_tokens: float = 0.0
    member_bytes: int = 0
    file_bytes: int = 0
    device_s: float = 0.0
    replicas: frozenset[str] = frozenset()
    started: str | None = None
    finished: str | None = None

    @property
    def retention(self) -> float:
        """Image tokens held, mean over all layers and samples, as a share; 0 without samples."""
        return self.held_tokens / self.image_tokens if self.image_tokens else 0.0


def add_up(commits: Iterable[CommitRecord]) -> Totals:
    """The sums over these parts."""
    totals, reasons = Totals(), Counter[str]()
    shards, replicas = set[str](), set[str]()
    for commit in commits:
        sums = commit.statistics
        shards.add(commit.shard.name)
        replicas.add(commit.replica)
        reasons.update(sums.reasons)
        totals.parts += 1
        totals.stored += commit.stored
        totals.quarantined += commit.quarantined
        totals.complete_shards += commit.last
        totals.image_tokens += sums.image_tokens
        totals.held_tokens += sums.held_tokens
        totals.member_bytes += sums.member_bytes
        totals.file_bytes += sum(file.size for file in commit.files.values())
        totals.device_s += sums.device_s
        totals.started = min(totals.started or commit.run.started, commit.run.started)
        totals.finished = max(totals.finished or commit.run.finished, commit.run.finished)
        if commit.damage is not None:
            totals.damaged[commit.shard.name] = commit.damage
    totals.shards, totals.replicas = len(shards), frozenset(replicas)
    totals.reasons = dict(reasons.most_common())
    return totals
