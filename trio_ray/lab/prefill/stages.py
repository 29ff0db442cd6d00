"""Where a prefill's time goes, stage by stage. Measured apart from the throughput, which it would disturb."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trio_ray.kv.batch import PrefixBatch
from trio_ray.lab.prefill.pruned import Pruned
from trio_ray.lab.prefill.unpruned import Unpruned
from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows, Positions
from trio_ray.method.selectors.selector import Selection, Selector
from trio_ray.tensors import Mark, mark, milliseconds_between

STAGES = ("vision", "layers before the first prune", "score", "NMS", "gather", "layers behind it", "copy to host")
"""In the order in which they run; an unpruned prefill has all its layers before."""


class StageClock:
    """Adds up the time of named spans: device events on a GPU, so that nothing waits in between; else the host's
    clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: dict[str, list[tuple[Mark, Mark]]] = defaultdict(list)
        self._open: dict[str, Mark] = {}

    def start(self, name: str) -> None:
        """Open a span."""
        self._open[name] = mark(self._device)

    def stop(self, name: str) -> None:
        """Close it; nothing happens where it is not open."""
        if name in self._open:
            self._spans[name].append((self._open.pop(name), mark(self._device)))

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Around a block."""
        self.start(name)
        yield
        self.stop(name)

    def milliseconds(self, name: str) -> float:
        """Sum of the spans of this name. Waits for the device."""
        return sum(milliseconds_between(start, stop) for start, stop in self._spans[name])


@dataclass(frozen=True, kw_only=True)
class _Timed(Selector):
    """Another selector between the marks of a clock. It scores and gathers once more, to see these apart."""

    inner: Selector
    kept_positions: Positions
    clock: StageClock

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        return self.inner.score(hidden, rows, proxy)

    def select(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, keep: Sequence[int]) -> Selection:
        self.clock.stop("before the first select")
        with self.clock.span("extra"), self.clock.span("score"):
            self.inner.score(hidden, rows, proxy)
        with self.clock.span("select"):
            selection = self.inner.select(hidden, rows, proxy, keep)
        with self.clock.span("extra"), self.clock.span("gather"):
            hidden[selection.rows]
            rows.keep(selection.rows, keep, self.kept_positions)
        return selection


def pruned_stages(contestant: Pruned, pass_number: int) -> dict[str, float]:
    """Milliseconds of each of `STAGES`, a sample, over one pass."""
    replica = contestant.replica
    clock = StageClock(replica.device)
    method = contestant.method
    timed = replace(method, selector=_Timed(inner=method.selector, kept_positions=method.positions, clock=clock))
    for embedded, batch in zip(contestant.batches(pass_number), contestant.batches(pass_number + 1), strict=True):
        with clock.span("vision"):
            replica.embed(embedded)
        clock.start("before the first select")
        with clock.span("all"):
            prefixes = replica.prefill(batch, timed).batch
        _copy_to_host(prefixes, clock)
    total = {name: clock.milliseconds(name) for name in ("vision", "score", "gather", "copy to host")}
    before = clock.milliseconds("before the first select") - total["vision"]
    select = clock.milliseconds("select")
    behind = (
        clock.milliseconds("all") - clock.milliseconds("before the first select") - clock.milliseconds("extra")
        - select - total["gather"]
    )  # fmt: skip
    total |= {
        "NMS": select - total["score"],
        "layers before the first prune": before,
        "layers behind it": behind,
    }
    return {name: max(0.0, total[name]) / len(contestant.samples) for name in STAGES}


def unpruned_stages(contestant: Unpruned, pass_number: int) -> dict[str, float]:
    """The same of an unpruned prefill, whose keys and values are not copied."""
    clock = StageClock(contestant.replica.device)
    for batch in contestant.batches(pass_number):
        with clock.span("vision"):
            contestant.encode(batch)
        with clock.span("all"):
            contestant.run(batch)
    vision, everything = clock.milliseconds("vision"), clock.milliseconds("all")
    total = dict.fromkeys(STAGES, 0.0) | {"vision": vision, "layers before the first prune": everything - vision}
    return {name: milliseconds / len(contestant.samples) for name, milliseconds in total.items()}


def _copy_to_host(prefixes: PrefixBatch, clock: StageClock) -> None:
    """Keys and values as they are, without encoding, into pinned memory that is there before the clock starts."""
    tensors = [tensor for segment in prefixes.segments for tensor in (segment.keys, segment.values)]
    hosts = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda) for tensor in tensors]
    with clock.span("copy to host"):
        for host, tensor in zip(hosts, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
