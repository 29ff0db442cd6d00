"""How long a decode step takes, beside the time that moving its bytes would take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from trio_ray.estimate.made_up_states import GEOMETRIES, prefix_batch
from trio_ray.kv.prefix import Prefix
from trio_ray.model.decode.engine import Engine, Request
from trio_ray.model.decoder import Decoder
from trio_ray.model.replica import Replica

WARM_UP_STEPS = 8
TIMED_STEPS = 24
MOST_OWN_BYTES = 45e9
"""Upper bound of the bytes of appended tokens. With many sequences of a large model, fewer steps are run."""
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}


@dataclass(frozen=True)
class StepTimes:
    """A decode step of `sequences` sequences.

    Attributes:
        first_ms: mean of the steps right behind the warm-up.
        last_ms: mean of the last steps of `steps`.
        first_limit_ms, last_limit_ms: weights, keys and values that such a step reads, over the bandwidth of a copy.
    """

    sequences: int
    steps: int
    first_ms: float
    last_ms: float
    first_limit_ms: float
    last_limit_ms: float


def measure_steps(
    replica: Replica, shapes: str, sizes: Sequence[int], steps: int, on_step: Callable[[str], None]
) -> dict[str, Any]:
    """Decode made-up prefixes, `sizes` of them at a time, over `steps` steps.

    Args:
        replica: a model of these shapes.
        shapes: of `GEOMETRIES`.
        sizes: batch sizes.
        steps: steps of each.
        on_step: told what is measured.
    """
    device = replica.device
    prefixes = prefix_batch(GEOMETRIES[shapes], 32, device).split()
    bandwidth = copy_bandwidth(device)
    times = []
    for size in sizes:
        on_step(f"{size} sequences")
        chosen = [prefixes[number % len(prefixes)] for number in range(size)]
        times.append(_measure(replica.decoder, chosen, steps, bandwidth))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {"copy_bytes_per_s": bandwidth, "steps": [asdict(one) for one in times]}


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    size = COPY_BYTES[device.type]
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rounds = 10
    for _ in range(3):
        target.copy_(source)
    started = _now(device)
    for _ in range(rounds):
        target.copy_(source)
    return 2 * rounds * size / (_now(device) - started)


def weight_bytes(decoder: Decoder) -> int:
    """Bytes of the weights that a decode step reads: all layers and the head."""
    matrices = [m for layer in decoder.weights for m in (layer.qkv, layer.output, layer.gate_up, layer.down)]
    head = next(decoder.head.parameters())
    return sum(m.weight.nbytes for m in matrices) + head.nbytes


def _measure(decoder: Decoder, prefixes: Sequence[Prefix], steps: int, bandwidth: float) -> StepTimes:
    weight = next(decoder.embed.parameters())
    vector = 2 * decoder.kv_heads * decoder.head_dim * weight.element_size()  # of one row in one layer
    token_bytes = vector * decoder.depth
    steps = min(steps, int(MOST_OWN_BYTES / (token_bytes * len(prefixes))))
    device = weight.device
    engine = Engine(decoder, max_sequences=len(prefixes))
    for number, prefix in enumerate(prefixes):
        # No two prefixes are one object, so that each has rows of its own.
        engine.submit(Request(number, Prefix(**vars(prefix)), steps + 1, first_token=5))
    for _ in range(WARM_UP_STEPS):
        engine.step()
    first = _mean_ms(engine, TIMED_STEPS, device)
    for _ in range(steps - WARM_UP_STEPS - 2 * TIMED_STEPS):
        engine.step()
    last = _mean_ms(engine, TIMED_STEPS, device)
    held = vector * sum(segment.layers * segment.rows for prefix in prefixes for segment in prefix.segments)
    limits = [
        1e3 * (weight_bytes(decoder) + held + len(prefixes) * token_bytes * appended) / bandwidth
        for appended in (WARM_UP_STEPS + TIMED_STEPS // 2, steps - TIMED_STEPS // 2)
    ]
    return StepTimes(len(prefixes), steps, first, last, *limits)


def _mean_ms(engine: Engine, steps: int, device: torch.device) -> float:
    started = _now(device)
    for _ in range(steps):
        engine.step()
    return 1e3 * (_now(device) - started) / steps


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
