"""What all commit records of a cache say in sum. No table of samples is read for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from trio_ray.store.layout import FileKind


@dataclass(frozen=True)
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
        replicas: devices that computed parts, sorted.
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
    replicas: tuple[str, ...] = ()
    started: str | None = None
    finished: str | None = None

    @property
    def retention(self) -> float:
        """Image tokens held, mean over all layers and samples, as a share; 0 without samples."""
        return self.held_tokens / self.image_tokens if self.image_tokens else 0.0


def add_up(rows: pa.Table) -> Totals:
    """The sums over parts, given as rows of the catalog's columns (`store.tables.COMMITS`)."""

    def total(name: str) -> Any:
        return pc.sum(rows.column(name)).as_py() or 0

    damaged = rows.select(["shard", "damage"]).filter(pc.is_valid(rows.column("damage"))).to_pylist()
    reasons = Counter[str]()
    for counted in pc.list_flatten(rows.column("reasons")).to_pylist():
        reasons[counted["reason"]] += counted["count"]
    return Totals(
        parts=rows.num_rows,
        stored=total("stored"),
        quarantined=total("quarantined"),
        shards=len(pc.unique(rows.column("shard"))),
        complete_shards=total("last"),
        damaged={row["shard"]: row["damage"] for row in damaged},
        reasons=dict(reasons.most_common()),
        image_tokens=total("image_tokens"),
        held_tokens=total("held_tokens"),
        member_bytes=total("member_bytes"),
        file_bytes=sum(total(f"{kind}_size") for kind in get_args(FileKind)),
        device_s=total("device_s"),
        replicas=tuple(sorted(pc.unique(rows.column("replica")).to_pylist())),
        started=pc.min(rows.column("started")).as_py(),
        finished=pc.max(rows.column("finished")).as_py(),
    )
