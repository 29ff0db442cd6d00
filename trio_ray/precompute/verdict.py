"""What a whole cache says about its input: the share of bad samples, and which files were damaged.

It is the same whichever run has met them, and in whichever order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trio_ray.errors import JobFailed
from trio_ray.store.commit_table import CommitTable

SAMPLES_BEFORE_LIMIT = 100
"""Of fewer samples a share says little."""

SAMPLES_BEFORE_WARNING = 1000
"""So many samples, all of them bad, are worth a warning: the settings may not fit the input."""


@dataclass(frozen=True)
class Verdict:
    """Samples of all committed parts, and the damage of the shards that were asked about, by shard name."""

    stored: int
    quarantined: int
    damaged: dict[str, str]

    def check(self, limit: float, output: str) -> None:
        """Raise `JobFailed` if more than the share `limit` of the samples is bad."""
        seen = self.stored + self.quarantined
        if seen >= SAMPLES_BEFORE_LIMIT and self.quarantined > limit * seen:
            raise JobFailed(
                f"{self.quarantined} of all {seen} samples in the cache are bad, more than pipeline.max_bad_fraction = "
                f"{limit:g}; look at the quarantine (trio-ray inspect {output}), then mend the input or raise the "
                "limit; where rows without images are many, source.text_only: skip passes over them"
            )


def judge(commits: CommitTable, shards: Iterable[str]) -> Verdict:
    """Add up all committed parts.

    Args:
        commits: of the cache.
        shards: names of those whose damage is asked about.
    """
    wanted = set(shards)
    totals = commits.totals
    damaged = {shard: damage for shard, damage in totals.damaged.items() if shard in wanted}
    return Verdict(totals.stored, totals.quarantined, damaged)


def all_bad_so_far(reasons: Mapping[str, int]) -> str | None:
    """A warning for a run that has stored nothing yet, but has met SAMPLES_BEFORE_WARNING bad samples; else None.

    It does not stop the run: in another order the same input would not be stopped, and the sound samples may come
    last. Rows without images do not count.

    Args:
        reasons: how many bad samples this run has met, by reason.
    """
    counted = {reason: count for reason, count in reasons.items() if reason != "text_only"}
    bad = sum(counted.values())
    if bad < SAMPLES_BEFORE_WARNING:
        return None
    most = max(counted, key=lambda reason: counted[reason])
    return (
        f"not one of the first {bad} samples could be stored, most of them for the reason {most}; the settings may not "
        "fit the input. The run goes on; Ctrl-C ends it"
    )
