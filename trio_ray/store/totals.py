"""What all commit records of a cache say in sum. No table is read for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import get_args

import pyarrow.compute as pc

from trio_ray.store.commit_table import CommitTable
from trio_ray.store.layout import FileKind


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
        file_bytes: of all files.
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


def add_up(commits: CommitTable) -> Totals:
    """The sums over all parts."""
    rows = commits.rows
    damaged = rows.select(["shard", "damage"]).filter(pc.is_valid(rows.column("damage"))).to_pylist()
    reasons = Counter[str]()
    for counted in pc.list_flatten(rows.column("reasons")).to_pylist():
        reasons[counted["reason"]] += counted["count"]
    return Totals(
        parts=len(commits),
        stored=commits.total("stored"),
        quarantined=commits.total("quarantined"),
        shards=len(commits.shards),
        complete_shards=commits.total("last"),
        damaged={row["shard"]: row["damage"] for row in damaged},
        reasons=dict(reasons.most_common()),
        image_tokens=commits.total("image_tokens"),
        held_tokens=commits.total("held_tokens"),
        member_bytes=commits.total("member_bytes"),
        file_bytes=sum(commits.total(f"{kind}_size") for kind in get_args(FileKind)),
        device_s=commits.total("device_s"),
        replicas=frozenset(pc.unique(rows.column("replica")).to_pylist()),
        started=pc.min(rows.column("started")).as_py(),
        finished=pc.max(rows.column("finished")).as_py(),
    )
