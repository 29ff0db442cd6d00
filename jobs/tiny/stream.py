"""An endless stream of freshly rendered training scenes, and the window of it that is on the training device.

Worker processes render chunks of scenes into shared memory, ahead of the training; the window slides on by a fixed
number of scenes a step. Which scenes a step can draw depends on its number alone, never on how fast the workers are.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections import deque
from multiprocessing.pool import ApplyResult, Pool

import numpy as np
import torch

from jobs.tiny.examples import FIELDS, Example, write_example
from trio_ray.lab.scenes import FAMILIES, Split, render_scene

CHUNK = 256
# Scenes a batch holds for each number of tiles, in 24ths. Fixed, so that every batch has the same number of tiles.
TILE_SHARES = {3: 6, 4: 8, 5: 10}

Arrays = dict[str, torch.Tensor]

_buffers: list[Example] = []  # in a worker process: the memory that it shares with its parent


class SceneWindow:
    """The `scenes` newest scenes of the training stream, on the training device.

    Construct it before the device is first used: it forks its workers.
    """

    def __init__(self, family: str, scenes: int, workers: int, device: torch.device, shown: int = 0) -> None:
        """`family`: what the scenes hold; `shown`: scenes of the stream that an earlier run has been through."""
        self._family = family
        self._capacity = scenes // CHUNK
        self._free = deque(range(2 * workers + 2))
        self._buffers = [_shared_examples(CHUNK) for _ in self._free]
        self._pool = _start_workers(workers, self._buffers)
        self._next_sent = self._next_kept = shown // CHUNK
        self._coming: deque[tuple[int, ApplyResult[None]]] = deque()
        self._send()
        self.arrays = _device_arrays(self._capacity * CHUNK, device)
        self._tile_counts = np.zeros(self._capacity * CHUNK, np.uint8)

    def advance(self, shown: int) -> None:
        """Slide on to where `shown` scenes have been replaced since the stream's start; waits for the workers."""
        while self._next_kept < self._capacity + shown // CHUNK:
            buffer, result = self._coming.popleft()
            result.get()
            self._keep(self._buffers[buffer])
            self._free.append(buffer)
            self._send()

    def draw(self, batch: int, rng: np.random.Generator) -> torch.Tensor:
        """Rows of `arrays` for one batch, made up as `batch_shares` says."""
        rows = [
            rng.choice(np.flatnonzero(self._tile_counts == tiles), count, replace=False)
            for tiles, count in batch_shares(batch)
        ]
        return torch.from_numpy(np.concatenate(rows)).to(self.arrays["ids"].device)

    def close(self) -> None:
        """Stop the workers."""
        self._pool.terminate()
        self._pool.join()

    def _send(self) -> None:
        while self._free:
            buffer = self._free.popleft()
            result = self._pool.apply_async(_render_chunk, (self._next_sent, buffer, self._family, "train"))
            self._coming.append((buffer, result))
            self._next_sent += 1

    def _keep(self, examples: Example) -> None:
        start = self._next_kept % self._capacity * CHUNK
        for name, array in examples.items():
            self.arrays[name][start : start + CHUNK].copy_(torch.from_numpy(array))
        self._tile_counts[start : start + CHUNK] = examples["tile_count"]
        self._next_kept += 1


def batch_shares(batch: int) -> list[tuple[int, int]]:
    """(number of tiles, examples) of a batch, in this order: always the same, so that its shapes never change."""
    unit = batch // sum(TILE_SHARES.values())
    return [(tiles, share * unit) for tiles, share in TILE_SHARES.items()]


def fixed_batches(tile_counts: torch.Tensor, batch: int) -> list[torch.Tensor]:
    """As many disjoint batches, made up as `batch_shares` says, as these examples give."""
    pools = [torch.split(torch.nonzero(tile_counts == tiles).flatten(), count) for tiles, count in batch_shares(batch)]
    full = min(
        sum(len(part) == count for part in pool) for pool, (_, count) in zip(pools, batch_shares(batch), strict=True)
    )
    return [torch.cat([pool[number] for pool in pools]) for number in range(full)]


def render_examples(family: str, split: Split, count: int, workers: int) -> Arrays:
    """The first `count` scenes of a family's split, rendered at once, on the CPU."""
    buffers = [_shared_examples(CHUNK) for _ in range(-(-count // CHUNK))]
    with _start_workers(workers, buffers) as pool:
        pool.starmap(_render_chunk, [(chunk, chunk, family, split) for chunk in range(len(buffers))], chunksize=1)
    return {name: torch.from_numpy(np.concatenate([b[name] for b in buffers])[:count]) for name in FIELDS}


def _start_workers(count: int, buffers: list[Example]) -> Pool:
    """Forked, so that the buffers are handed on as they are."""
    return multiprocessing.get_context("fork").Pool(count, initializer=_start_worker, initargs=(buffers,))


def _start_worker(buffers: list[Example]) -> None:
    _buffers[:] = buffers
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def _render_chunk(chunk: int, buffer: int, family: str, split: Split) -> None:
    for row in range(CHUNK):
        write_example(_buffers[buffer], row, render_scene(chunk * CHUNK + row, split, FAMILIES[family]))


def _shared_examples(count: int) -> Example:
    """Arrays in anonymous memory that forked workers write and this process reads."""
    arrays: Example = {}
    for name, (shape, dtype) in FIELDS.items():
        size = int(np.prod((count, *shape))) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(mmap.mmap(-1, size), dtype).reshape(count, *shape)
    return arrays


def _device_arrays(count: int, device: torch.device) -> Arrays:
    types = {np.uint8: torch.uint8, np.int16: torch.int16}
    return {
        name: torch.zeros((count, *shape), dtype=types[dtype], device=device) for name, (shape, dtype) in FIELDS.items()
    }
