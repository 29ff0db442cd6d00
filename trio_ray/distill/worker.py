"""One worker of a distillation: reads its share, trains, and as the first one stores and measures. Knows no Ray."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import ModelConfig, PromptConfig
from trio_ray.distill.checkpoint import load_checkpoint, save_checkpoint
from trio_ray.distill.config import DistillConfig
from trio_ray.distill.examples import Example
from trio_ray.distill.measure import measure
from trio_ray.distill.stream import SampleStream
from trio_ray.distill.student import build_student, save_student
from trio_ray.distill.teacher import PrefixTeacher, StoredTeacher, Teacher
from trio_ray.distill.training import StepReport, Trainer
from trio_ray.errors import ObjectMissing
from trio_ray.model.decoder import default_device
from trio_ray.model.loading import model_folder
from trio_ray.model.replica import Replica
from trio_ray.store.opening import open_store

LOSSES, STUDENT = "losses.jsonl", "student"


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs: the job, its settings that a checkpoint must share, its rank, and the number of workers."""

    config: DistillConfig
    identity: dict[str, Any]
    rank: int = 0
    world_size: int = 1


@dataclass
class Worker:
    """A student in training, one of `spec.world_size` equal ones.

    Args:
        spec: the job.
        device: where it trains; by default the first GPU, else the CPU.

    Raises:
        ConfigError: the job cannot be run, or the output's checkpoint is another job's.
        StoreError: a cache or the output failed.
    """

    spec: WorkerSpec
    device: torch.device = field(default_factory=default_device)

    def __post_init__(self) -> None:
        config = self.spec.config
        self._folder = model_folder(config.teacher)
        self._cache = PrunedCache(config.cache, config.s3)
        self._prefixes = None if config.prefixes is None else PrunedCache(config.prefixes, config.s3)
        self._teacher = self._load_teacher()
        self._store = open_store(config.output, config.s3)
        model = build_student(self._folder, config.student, config.training.seed)
        self._trainer = Trainer(model, config, self._cache.method.positions, self.device)
        self._resumed = load_checkpoint(self._store, self._trainer, self.spec.identity)
        self._stream = self._open_stream()
        self._losses: list[dict[str, Any]] = self._earlier_losses()

    def run(self, on_step: Callable[[StepReport], None] = lambda report: None) -> dict[str, Any]:
        """Train to the last step; the first worker then stores the student and measures it.

        Returns:
            The first worker what there is to say of the job; the others only how many samples they skipped.
        """
        started, first = time.monotonic(), self._trainer.step
        training = self.spec.config.training
        with closing(self._batches()) as batches:
            while self._trainer.step < training.steps:
                following = (self._trainer.step // training.checkpoint_every + 1) * training.checkpoint_every
                self._trainer.run(batches, min(following, training.steps), lambda report: self._note(report, on_step))
                if self.spec.rank == 0:
                    self._checkpoint()
        seconds = time.monotonic() - started
        skipped = {"skipped": self._stream.skipped}
        return skipped if self.spec.rank else self._finished(self._trainer.step - first, seconds) | skipped

    def _load_teacher(self) -> Teacher:
        if self._prefixes is None:
            return StoredTeacher()
        identity = self._prefixes.dataset.identity
        config = self.spec.config.teacher.model_copy(update={"dtype": identity["model"]["dtype"]})
        replica = Replica.load(config, PromptConfig.model_validate(identity["prompt"]), self.device)
        return PrefixTeacher(replica, self.spec.config.test.max_new_tokens)

    def _open_stream(self) -> SampleStream:
        config, rank, world = self.spec.config, self.spec.rank, self.spec.world_size
        training, size = config.training, config.training.batch_size
        share = size * (rank + 1) // world - size * rank // world
        return SampleStream(
            self._cache, self._prefixes, share, rank, world, training.seed, training.read_threads, config.on_bad
        )  # fmt: skip

    def _batches(self) -> Generator[list[Example], None, None]:
        with closing(self._stream.batches(self._trainer.step)) as batches:
            for samples in batches:
                yield self._teacher.examples(samples)

    def _note(self, report: StepReport, on_step: Callable[[StepReport], None]) -> None:
        if report.step % self.spec.config.training.log_every == 0:
            self._losses.append(asdict(report))
        on_step(report)

    def _checkpoint(self) -> None:
        # First the losses: a run that goes on from the checkpoint wants all those before it, and leaves out later ones.
        self._store.put(LOSSES, "".join(json.dumps(line) + "\n" for line in self._losses).encode())
        save_checkpoint(self._store, self._trainer, self.spec.identity)

    def _earlier_losses(self) -> list[dict[str, Any]]:
        if not self._resumed:
            return []
        try:
            data = self._store.read(LOSSES)
        except ObjectMissing:  # somebody removed it: no reason to lose the training as well
            return []
        lines = [json.loads(line) for line in data.splitlines()]
        return [line for line in lines if line["step"] <= self._trainer.step]

    def _finished(self, steps: int, seconds: float) -> dict[str, Any]:
        config = self.spec.config
        metrics: dict[str, Any] = {
            "cache": config.cache,
            "samples": len(self._cache),
            "student_layers": config.student.layers,
            "trained_parameters": sum(parameter.numel() for parameter in self._trainer.parameters.values()),
            "workers": self.spec.world_size,
            "steps": {"all": self._trainer.step, "this_run": steps},
            "seconds": seconds,
            "losses": self._losses[-1] if self._losses else None,
        }
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / STUDENT
            save_student(self._trainer.model, self._folder, folder)
            if config.test.cache is not None:
                metrics["test"] = {"cache": config.test.cache, **self._measured(config.test.cache, folder)}
            for file in sorted(folder.iterdir()):
                with file.open("rb") as source, self._store.writer(f"{STUDENT}/{file.name}") as target:
                    shutil.copyfileobj(source, target, 1 << 24)
        return metrics

    def _measured(self, cache: str, folder: Path) -> dict[str, Any]:
        """Of the student as it is stored, in the arithmetic that the cache was made in."""
        config = self.spec.config
        held_out = PrunedCache(cache, config.s3)
        model = ModelConfig(name=str(folder), dtype=held_out.dataset.identity["model"]["dtype"])
        prompt = PromptConfig.model_validate(held_out.dataset.identity["prompt"])
        test, threads = config.test, config.training.read_threads
        return measure(
            Replica.load(model, prompt, self.device), held_out, test.max_new_tokens, test.batch_size, threads
        )
