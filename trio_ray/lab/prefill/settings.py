"""What a benchmark measures; light to import."""

from __future__ import annotations

from dataclasses import dataclass

CONTESTANTS = ("unpruned", "authors", "random", "trio", "trio-plus")
WORKLOADS = ("pope", "web")


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Attributes:
        workload: of `WORKLOADS`.
        samples: how many.
        rounds: timed passes of each contestant.
        contestants: of `CONTESTANTS`, in the order in which they take turns.
        retention: mean share of image tokens that a layer holds.
        token_budget: prompt rows a batch; None searches for the best.
        memory_limit: most bytes on the device that the search may use, or None.
        seed: of the workload.
        full_depth: share of the layers that the pruned contestants run on all image tokens.
    """

    workload: str
    samples: int
    rounds: int
    contestants: tuple[str, ...] = CONTESTANTS
    retention: float = 0.111
    token_budget: int | None = None
    memory_limit: int | None = None
    seed: int = 0
    full_depth: float = 0.0
