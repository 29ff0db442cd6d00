"""How long each stage of restoring takes, one behind the other; in `restore` they overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import torch

from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.comparison import compare_on_device, compare_on_host
from trio_ray.kv.container import CheckedContainer, Stored, check_containers, checksum
from trio_ray.kv.lossless.on_device import restore_tensors
from trio_ray.kv.restore import decompress_on_host, inverse, start_restore
from trio_ray.kv.staging import stage
from trio_ray.kv.target import fresh_targets
from trio_ray.tensors import has_triton

R = TypeVar("R")


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds for one batch, medians.

    Attributes:
        check: headers compared and small tensors read, in one thread.
        checksums: compared, on the device where it has our kernels, else in one thread.
        copy: stored bytes to the device; 0 on a CPU.
        lossless: stored bytes to the codec's tensors.
        inverse: the codec's tensors to keys and values in their rows.
        restore: checksums, copy, lossless and inverse as `start_restore` does them, which waits only at its end.
    """

    check: float
    checksums: float
    copy: float
    lossless: float
    inverse: float
    restore: float


def stage_times(
    items: Sequence[tuple[str | None, Stored]], codec: Codec, device: torch.device, repeats: int = 5
) -> StageTimes:
    """Measure the stages on one batch of samples whose segments hold the same layers.

    Args:
        items: keys and containers, see `read_containers`.
        codec: the cache's.
        device: where they are restored.
        repeats: of each stage, after two that do not count.
    """

    def timed(work: Callable[[], R]) -> tuple[float, R]:
        taken = []
        for _ in range(repeats + 2):
            _wait(device)
            started = time.perf_counter()
            result = work()
            _wait(device)
            taken.append(time.perf_counter() - started)
        return 1e3 * median(taken[2:]), result

    check, outcomes = timed(lambda: check_containers(items, codec))
    checked = [outcome for outcome in outcomes if isinstance(outcome, CheckedContainer)]
    sums = [checksum(sample.data.data) for sample in checked]
    copy = 0.0
    if has_triton(device):
        copy, staged = timed(lambda: stage(checked, device))
        compare, compared = timed(lambda: compare_on_device(staged, checked, sums))
        assert compared is not None
        lossless, (tensors, _) = timed(lambda: restore_tensors(staged.source, staged.tensors))
    else:
        compare, _ = timed(lambda: compare_on_host(checked, sums))
        lossless, (tensors, _) = timed(lambda: decompress_on_host(checked, device))
    (targets,) = fresh_targets(device)([[sample.shapes for sample in checked]])
    inverted, _ = timed(lambda: inverse(checked, codec, tensors, targets))
    whole, _ = timed(lambda: start_restore(checked, codec, device, checksums=sums).finish())
    return StageTimes(check, compare, copy, lossless, inverted, whole)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
