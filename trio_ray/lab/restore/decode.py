"""A decode step of the engine, beside the limit of the memory and beside transformers' own generate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from trio_ray.lab.prefill.unpruned import Unpruned
from trio_ray.lab.restore.steps import measure_steps
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.tensors import attempt, measure

SIZES, CPU_SIZES = (1, 8, 64, 256), (1, 8)
"""Sequences that decode at a time."""
STEPS, CPU_STEPS = 1000, 100
UNPRUNED_BATCHES = (8, 16, 32)
FEW, MANY = 4, 24
"""Tokens of two runs of generate. The difference of their times is due to the additional steps."""


@dataclass(frozen=True)
class GenerateTimes:
    """transformers' generate on unpruned prompts.

    Attributes:
        batch: prompts at a time.
        first_ms: until the first token: vision and prefill.
        step_ms: each further token.
    """

    batch: int
    first_ms: float
    step_ms: float

    def answers_per_s(self, tokens: int) -> float:
        """Answers of so many tokens a second."""
        return 1e3 * self.batch / (self.first_ms + (tokens - 1) * self.step_ms)


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """cuDNN's attention makes a plan for every new key length, which costs two thirds of generate's time."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def time_generate(replica: Replica, samples: Sequence[PreparedSample], batch: int) -> GenerateTimes | None:
    """The times of generate on the first `batch` samples; None if memory is too small."""

    def both() -> tuple[float, float]:
        generate_unpruned(replica, samples[:batch], 2)
        few, many = (partial(generate_unpruned, replica, samples[:batch], tokens) for tokens in (FEW, MANY))
        return measure(replica.device, few).seconds, measure(replica.device, many).seconds

    times = attempt(replica.device, both)
    if times is None:
        return None
    step = 1e3 * (times[1] - times[0]) / (MANY - FEW)
    return GenerateTimes(batch, 1e3 * times[0] - (FEW - 1) * step, step)


@torch.no_grad()
def generate_unpruned(replica: Replica, samples: Sequence[PreparedSample], tokens: int) -> None:
    """Generate answers of exactly `tokens` tokens to whole prompts, all in one batch."""
    contestant = Unpruned(replica, samples, len(samples))
    (batch,) = contestant.batches(0)
    ids = batch.ids.to(replica.device)
    model: Any = replica.model
    with without_cudnn_attention():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=contestant.pixels(batch),
            image_sizes=batch.sizes,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )


def measure_decode(
    replica: Replica, shapes: str, samples: Sequence[PreparedSample], on_step: Callable[[str], None]
) -> dict[str, Any]:
    """The engine's steps (see `measure_steps`) and, under `generate`, transformers' own by batch size."""
    on_gpu = replica.device.type == "cuda"
    sizes, steps = (SIZES, STEPS) if on_gpu else (CPU_SIZES, CPU_STEPS)
    found = measure_steps(replica, shapes, sizes, steps, on_step)
    found["generate"] = []
    for batch in UNPRUNED_BATCHES:
        on_step(f"transformers' generate, {batch} prompts")
        if batch <= len(samples) and (times := time_generate(replica, samples, batch)) is not None:
            found["generate"].append(asdict(times))
    return found
