"""The training loop of one worker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from trio_ray.distill.config import DistillConfig, TrainingConfig
from trio_ray.distill.examples import Example, ExampleBatch, collate
from trio_ray.distill.loss import teacher_loss, truth_loss
from trio_ray.distill.student import trained_parameters
from trio_ray.method.rows import Positions

BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class StepReport:
    """What a step did: mean losses a token (0 where no token counts), gradient norm before clipping, seconds waited
    for examples.
    """

    step: int
    truth: float
    teacher: float
    norm: float
    rate: float
    waited_s: float


class Trainer:
    """Trains a student on one device; with `torch.distributed` running, as one of its ranks.

    Gradients are summed over the ranks and divided by the tokens of all of them, so a step is that of one process
    which has all the samples.

    Args:
        model: the student, fp32.
        config: the distillation.
        positions: of the prompts' rows, as the cache's method leaves them.
        device: where it is trained.

    Attributes:
        step: optimizer steps done.
    """

    def __init__(self, model: Any, config: DistillConfig, positions: Positions, device: torch.device) -> None:
        self.model = model.to(device)
        self._loss, self._training, self._positions, self._device = config.loss, config.training, positions, device
        self.parameters = trained_parameters(model)
        self.optimizer = torch.optim.AdamW(_groups(self.parameters, config.training), betas=BETAS)
        self.step = 0
        half = config.training.precision == "bfloat16"
        self._half = half or (config.training.precision == "auto" and device.type == "cuda")

    def run(self, batches: Iterator[list[Example]], until: int, on_step: Callable[[StepReport], None]) -> None:
        """Train to step `until` on batches that begin at `step`."""
        while self.step < until:
            began = time.perf_counter()
            examples = next(batches)
            waited = time.perf_counter() - began
            on_step(self._train_step(examples, waited))

    def _train_step(self, examples: list[Example], waited: float) -> StepReport:
        rate = learning_rate(self._training, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=False)
        batch = collate(examples, self._positions) if examples else None
        totals = self._summed(torch.tensor(batch.counts if batch else (0, 0), dtype=torch.float64))
        losses = torch.zeros(2)
        if batch is not None:
            losses = self._backward(batch.to(self._device), totals)
        self._sum_gradients()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self._training.clip_norm)
        self.optimizer.step()
        self.step += 1
        truth, teacher = self._summed(losses.double().cpu()).tolist()
        return StepReport(self.step, truth, teacher, float(norm), rate, waited)

    def _backward(self, batch: ExampleBatch, totals: Tensor) -> Tensor:
        """Add this worker's gradients; returns (2,) its share of the mean losses."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = student_logits(self.model, batch)
        truth = truth_loss(logits, batch.labels) / max(1.0, float(totals[0]))
        teacher = teacher_loss(logits[batch.taught], batch.ids, batch.logprobs, self._loss.temperature)
        teacher = teacher / max(1.0, float(totals[1]))
        (self._loss.truth * truth + self._loss.teacher * teacher).backward()
        return torch.stack([truth, teacher]).detach()

    def _sum_gradients(self) -> None:
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters.values()]
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        if distributed.is_initialized():
            flat = torch.cat([gradient.flatten() for gradient in gradients])  # one exchange instead of one a tensor
            distributed.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def _summed(self, values: Tensor) -> Tensor:
        """(n,) on the CPU, summed over the ranks."""
        if not distributed.is_initialized():
            return values
        on_device = values.to(self._device)
        distributed.all_reduce(on_device)
        return on_device.cpu()


def student_logits(model: Any, batch: ExampleBatch) -> Tensor:
    """(n, vocabulary) of the rows that predict an answer's tokens. The vision tower never runs."""
    words = model.get_input_embeddings()(batch.tokens)
    rows = torch.where(batch.is_token[..., None], words, batch.embeds)
    # A mask is given even where nothing is padded: without one, positions with gaps would be read as several sequences.
    hidden = model.model.language_model(
        inputs_embeds=rows, attention_mask=batch.real, position_ids=batch.position, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden.flatten(0, 1)[batch.places])


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Of step `step`, from 0: a linear warm-up, then half a cosine down to the final rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * 0.5 * (
        1 + math.cos(math.pi * done)
    )


def _groups(parameters: dict[str, nn.Parameter], config: TrainingConfig) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not."""
    return [
        {"params": [p for p in parameters.values() if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters.values() if p.dim() <= 1], "weight_decay": 0.0},
    ]
