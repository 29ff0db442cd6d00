"""The training loop: the vision tower first, then all of it, on a cosine schedule, with curves."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jobs.tiny.architecture import PAD, RECIPES
from jobs.tiny.checkpoint import load_checkpoint, save_checkpoint
from jobs.tiny.network import SharedImageTraining
from jobs.tiny.stream import Arrays, SceneWindow, fixed_batches, render_examples
from trio_ray.lab.scenes import QUESTION_TYPES

FIT_SHARE = 0.93
"""Share of the time left that the steps may take; the rest is for validation and the checkpoint."""


@dataclass(frozen=True)
class TrainingConfig:
    """One training. Two runs with equal values see the same scenes in the same order."""

    recipe: str = "bundled"
    vision_steps: int = 1000
    steps: int = 2500
    batch: int = 384
    learning_rate: float = 1.2e-3
    final_learning_rate: float = 3e-5
    warmup_steps: int = 200
    weight_decay: float = 0.05
    patch_loss: float = 0.2
    clip_norm: float = 1.0
    window: int = 24576
    vision_scenes_per_step: int = 32
    scenes_per_step: int = 160
    workers: int = 15
    validation_scenes: int = 1536
    report_every: int = 100
    seed: int = 0


class Training:
    """A run on one device, from scratch or from a checkpoint."""

    def __init__(self, config: TrainingConfig, folder: Path, device: torch.device, resume: Path | None) -> None:
        self.config, self.folder, self.device = config, folder, device
        self.started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        recipe = RECIPES[config.recipe]
        # Both fork worker processes, which must happen before the GPU is touched.
        self._validation = render_examples(recipe.family.name, "validation", config.validation_scenes, config.workers)
        first_step = 0 if resume is None else json.loads((resume / "state.json").read_text())["step"]
        self.network = SharedImageTraining(recipe, config.seed)
        shown = scenes_shown(config, first_step)
        self.window = SceneWindow(recipe.family.name, config.window, config.workers, device, shown)
        self.network.to(device)
        self.optimizer = _optimizer(self.network, config, device)
        self.step = 0 if resume is None else load_checkpoint(resume, self.network, self.optimizer)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch._dynamo.config.fail_on_recompile_limit_hit = True  # rather than go on, many times slower
            self.network.compile_layers()
        self._log(event="start", step=self.step, **asdict(config))

    def run(self, max_seconds: float, *, fit: bool = False) -> None:
        """Train to the last step, or until `max_seconds` since the start are over, then write a checkpoint.

        With `fit` a schedule that would not end in time is shortened while the rate of all weights still warms up, so
        that the run ends at its lowest rate; the steps chosen are a line of the curves.
        """
        sums: dict[str, Tensor] = {}
        since, began = self.step, time.monotonic()
        while self.step < self.total and time.monotonic() - self.started < max_seconds:
            losses = self._train_step()
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            if self.step % self.config.report_every == 0 or self.step == self.total:
                means = {name: round(float(value) / (self.step - since), 4) for name, value in sums.items()}
                pace = (time.monotonic() - began) / (self.step - since)
                self._report(means, pace)
                if fit and self.step == self.config.vision_steps + self.config.warmup_steps:
                    self._fit(pace, max_seconds)
                sums, since, began = {}, self.step, time.monotonic()
        self.window.close()
        save_checkpoint(self.folder / "checkpoint", self.network, self.optimizer, self.step, self.config.recipe)
        self._log(event="stop", step=self.step)

    @property
    def total(self) -> int:
        """Steps of the whole schedule."""
        return self.config.vision_steps + self.config.steps

    def _fit(self, pace: float, max_seconds: float) -> None:
        steps = fitting_steps(self.config, pace, max_seconds - (time.monotonic() - self.started))
        self.config = replace(self.config, steps=steps)
        self._log(event="fit", step=self.step, steps=steps)

    def _train_step(self) -> dict[str, Tensor]:
        config = self.config
        self.window.advance(scenes_shown(config, self.step))
        rows = self.window.draw(config.batch, np.random.default_rng([config.seed, self.step]))
        joint = self.step >= config.vision_steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        with self._autocast():
            losses = self.network(self.window.arrays, rows, run_decoder=joint)
        loss = losses.answers + config.patch_loss * losses.patches if joint else losses.patches
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"answers": losses.answers.detach(), "patches": losses.patches.detach()}

    def _report(self, means: dict[str, float], pace: float) -> None:
        joint = self.step > self.config.vision_steps
        last = self.step == self.total
        accuracy = self.validate() if joint and (last or self.step % (3 * self.config.report_every) == 0) else {}
        rate = learning_rate(self.config, self.step - 1)
        self._log(event="report", step=self.step, pace=round(pace, 4), rate=round(rate, 6), **means, **accuracy)

    def validate(self) -> dict[str, float]:
        """Exact-match accuracy by type on the validation scenes.

        Every answer token is the most probable one behind the true tokens before it: the same as greedy decoding
        giving exactly the answer.
        """
        rights: dict[str, list[bool]] = defaultdict(list)
        for rows in fixed_batches(self._validation["tile_count"], self.config.batch):
            part = {name: values[rows].to(self.device) for name, values in self._validation.items()}
            # With gradients on, and in training's shapes: so nothing is compiled anew.
            with self._autocast():
                logits = self.network(part, torch.arange(len(rows), device=self.device)).logits.detach()
            for name, values in _rights(part, logits).items():
                rights[name] += values
        accuracy = {name: round(float(np.mean(rights[name])), 4) for name in QUESTION_TYPES if rights[name]}
        accuracy["all"] = round(float(np.mean([right for values in rights.values() for right in values])), 4)
        return accuracy

    def _autocast(self) -> torch.autocast:
        """bfloat16 matrix products where there is hardware for them."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _log(self, **values: object) -> None:
        line = json.dumps({"seconds": round(time.monotonic() - self.started, 1), **values})
        print(line, flush=True)
        with (self.folder / "curves.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def scenes_shown(config: TrainingConfig, step: int) -> int:
    """How far the window of scenes has slid by this step."""
    vision = min(step, config.vision_steps)
    return vision * config.vision_scenes_per_step + (step - vision) * config.scenes_per_step


def fitting_steps(config: TrainingConfig, pace: float, seconds: float) -> int:
    """`steps` of a schedule whose warm-up is over, no more than end in `seconds` at `pace` seconds a step."""
    return min(config.steps, config.warmup_steps + max(1, int(FIT_SHARE * seconds / pace)))


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Constant after its warm-up for the vision tower alone, then a warm-up and half a cosine for all."""
    if step < config.vision_steps:
        return config.learning_rate * min(1.0, (step + 1) / config.warmup_steps)
    joint = step - config.vision_steps
    if joint < config.warmup_steps:
        return config.learning_rate * (joint + 1) / config.warmup_steps
    done = min(1.0, (joint - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * done))


def _optimizer(network: torch.nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors and embeddings do not."""
    matrices = [p for name, p in network.named_parameters() if p.ndim >= 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in network.parameters() if id(p) not in chosen]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=device.type == "cuda")


def _rights(arrays: Arrays, logits: Tensor) -> dict[str, list[bool]]:
    """Of every question of a batch, by type: is the whole answer right?"""
    asked = arrays["targets"] != PAD
    wrong = asked & (logits.argmax(-1) != arrays["targets"])
    segments = arrays["segments"].long()
    count = torch.zeros((len(segments), 256), dtype=torch.long, device=segments.device)
    questions = count.scatter_add(1, segments, asked.long())[:, 1:-1] > 0
    faults = count.scatter_add(1, segments, wrong.long())[:, 1:-1]
    example, slot = questions.nonzero(as_tuple=True)
    types = arrays["types"][example, slot].tolist()
    found: dict[str, list[bool]] = defaultdict(list)
    for number, right in zip(types, (faults[example, slot] == 0).tolist(), strict=True):
        found[list(QUESTION_TYPES)[number]].append(right)
    return found
