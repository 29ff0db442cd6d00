"""The decode step as CUDA graphs, one for each of a few batch sizes: a replay costs the host one launch."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from trio_ray.model.decode.rows import NewRows

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)

Step = Callable[[NewRows], Tensor]
"""One new row of each of B sequences -> (B, vocabulary) logits."""


@dataclass(frozen=True)
class _Captured:
    """A recorded step. It reads `rows` and writes `logits` wherever they were when it was recorded, so that these
    tensors must live as long as it does.
    """

    graph: torch.cuda.CUDAGraph
    rows: NewRows
    logits: Tensor


class StepGraphs:
    """Replays `step` at any lengths of the sequences; a batch is padded to the next captured size with idle rows.

    Args:
        step: reads and writes the same memory at every call.
        idle: slot of the padding.
        device: a GPU.
    """

    def __init__(self, step: Step, idle: int, device: torch.device) -> None:
        self._step, self._idle, self._device = step, idle, device
        self._captured: dict[int, _Captured] = {}
        self._memory = torch.cuda.graph_pool_handle()

    def run(self, slots: Tensor) -> Tensor:
        """One step for the sequences in these slots, (B,) int32 on the device -> (B, vocabulary) logits, which the
        next call overwrites.
        """
        captured = self._recorded(padded_size(len(slots)))
        captured.rows.slot[: len(slots)].copy_(slots)
        captured.rows.slot[len(slots) :].fill_(self._idle)
        captured.graph.replay()
        return captured.logits[: len(slots)]

    def record(self, most: int) -> None:
        """Record the step at all sizes that up to `most` sequences take, the largest first: the others fit into its
        memory.
        """
        for size in sorted({padded_size(batch) for batch in range(1, most + 1)}, reverse=True):
            self._recorded(size)

    def _recorded(self, size: int) -> _Captured:
        """The step for batches of this size, which is recorded when it is first asked for."""
        if size not in self._captured:
            self._captured[size] = self._capture(size)
        return self._captured[size]

    def _capture(self, size: int) -> _Captured:
        rows = NewRows.one_each(torch.full((size,), self._idle, dtype=torch.int32, device=self._device))
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._step(rows)  # compiles kernels and makes cuBLAS choose; neither may happen while recording
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may pin memory meanwhile; that must not spoil the recording.
        with _no_garbage_collected(), torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            logits = self._step(rows)
        return _Captured(graph, rows, logits)


_recording = threading.Lock()


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Keep Python from collecting reference cycles during a recording. It fails if its thread destroys another graph,
    and an engine that somebody dropped may be part of a cycle. There is one recording at a time.
    """
    with _recording:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


def padded_size(batch: int, sizes: Sequence[int] = BATCH_SIZES) -> int:
    """The smallest captured size that holds a batch, or the next multiple of the largest."""
    return next((size for size in sizes if size >= batch), -(-batch // sizes[-1]) * sizes[-1])
