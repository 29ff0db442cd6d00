"""Processor time of this machine's processes, to see who uses its cores.

Counted by process and not by core: in a container the kernel's totals may be those of the host around it.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessorTime:
    """What every process has used so far.

    Attributes:
        at: seconds, of any clock.
        used: by process number its name (the kernel's, 15 characters) and seconds.
    """

    at: float
    used: Mapping[int, tuple[str, float]]

    @classmethod
    def now(cls, at: float) -> ProcessorTime:
        """As `/proc` tells it; empty where there is none."""
        tick = os.sysconf("SC_CLK_TCK")
        used: dict[int, tuple[str, float]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                head, _, tail = stat.read_text(errors="replace").rpartition(")")
                number, _, name = head.partition(" (")
                user, system = tail.split()[11:13]
                used[int(number)] = (name, (int(user) + int(system)) / tick)
        return cls(at, used)

    def cores_since(self, before: ProcessorTime) -> dict[str, float]:
        """Cores that were busy meanwhile, a mean, by name of the process; what has ended since is not counted."""
        cores: dict[str, float] = defaultdict(float)
        for number, (name, seconds) in self.used.items():
            cores[name] += (seconds - before.used.get(number, (name, 0.0))[1]) / (self.at - before.at)
        return dict(cores)
