"""What a teacher is worth: the same student trained with and without it on rendered scenes, several seeds each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from trio_ray.config import load_config, parse_section
from trio_ray.distillation.config import DistillConfig
from trio_ray.distillation.job import plan_distillation
from trio_ray.distillation.worker import Worker
from trio_ray.errors import JobFailed
from trio_ray.pipeline.job import run_job
from trio_ray.scenes import Split
from trio_ray.scenes.corpus import write_corpus

SAMPLES_PER_SHARD = 800
TOP_K = 16


@dataclass(frozen=True)
class ComparisonConfig:
    """Sizes of a comparison.

    Attributes:
        labelled: training scenes whose answers are known.
        unlabelled: further training scenes, of which only the teacher says something.
        test: held-out scenes.
        questions: about each training scene; 4 about each held-out one.
        retention: of the teacher, which is the bundled model.
        layers: of the student, of 16.
        steps, batch_size: of each training.
        seeds: trainings of each kind.
    """

    labelled: int = 80
    unlabelled: int = 320
    test: int = 250
    questions: int = 8
    retention: float = 0.111
    layers: int = 4
    steps: int = 400
    batch_size: int = 32
    seeds: int = 3


@dataclass(frozen=True)
class Contestant:
    """What a student learns from: a cache, and how much the true answers and the teacher weigh."""

    name: str
    cache: str
    truth: float
    teacher: float


CONTESTANTS = (
    Contestant("without the teacher", "labelled", 1.0, 0.0),
    Contestant("with the teacher, on the same samples", "labelled", 0.5, 0.5),
    Contestant("with the teacher, on unlabelled scenes too", "all", 0.5, 0.5),
)


def make_caches(config: ComparisonConfig, folder: Path) -> None:
    """Render the scenes and precompute the caches `labelled`, `all` and `test` below `folder`, or what is missing.

    Raises:
        JobFailed: a cache could not be made.
    """
    corpora = folder / "corpora"
    _write(corpora / "labelled", config.labelled, "train", 0, config.questions)
    _write(corpora / "answered", config.unlabelled, "train", config.labelled, config.questions)
    _write(corpora / "test", config.test, "test", 0, 4)
    _remove_answers(corpora / "answered", corpora / "unlabelled")
    for name, parts in (("labelled", ["labelled"]), ("all", ["labelled", "unlabelled"]), ("test", ["test"])):
        job = load_config(
            values={
                "input": [str(corpora / part / "*.tar") for part in parts],
                "output": str(folder / name),
                "method.retention": config.retention,
                "cache.level": "embeds",
                "cache.targets": "top_k",
                "cache.top_k": TOP_K,
            }
        )
        summary = run_job(job)
        if not summary.ok:
            raise JobFailed(str(summary))


def compare(
    config: ComparisonConfig,
    folder: Path,
    on_result: Callable[[str, int, float], None] = lambda name, seed, right: None,
) -> dict[str, Any]:
    """Train every contestant with every seed; returns what `comparison.json` in the folder says.

    Args:
        config: the sizes that the caches were made with.
        folder: where the caches are and the students go.
        on_result: told each contestant's name, seed and accuracy.
    """
    accuracy: dict[str, list[float]] = {contestant.name: [] for contestant in CONTESTANTS}
    questions = 0
    for seed in range(config.seeds):
        for contestant in CONTESTANTS:
            test = _train(config, contestant, folder, seed)["test"]
            accuracy[contestant.name].append(test["accuracy"])
            questions = test["questions"]
            on_result(contestant.name, seed, test["accuracy"])
    base = accuracy[CONTESTANTS[0].name]
    found = {
        "config": vars(config),
        "questions": questions,
        "contestants": {name: _summary(values, base) for name, values in accuracy.items()},
    }
    (folder / "comparison.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def table(found: dict[str, Any]) -> str:
    """A comparison as a Markdown table."""
    lines = ["| student | accuracy, by seed | mean | gain | standard error |", "|---|---|---|---|---|"]
    for name, values in found["contestants"].items():
        seeds = ", ".join(f"{100 * value:.1f}" for value in values["accuracy"])
        gain, error = (f"{100 * values[field]:.1f}" for field in ("gain", "standard_error"))
        lines.append(f"| {name} | {seeds} | {100 * values['mean']:.1f} | {gain} | {error} |")
    return "\n".join([*lines, "", f"{found['questions']} held-out questions, percent right"])


def _train(config: ComparisonConfig, contestant: Contestant, folder: Path, seed: int) -> dict[str, Any]:
    tree = {
        "cache": str(folder / contestant.cache),
        "output": str(folder / "students" / f"{contestant.name.replace(' ', '-').replace(',', '')}-{seed}"),
        "student": {"layers": config.layers},
        "loss": {"truth": contestant.truth, "teacher": contestant.teacher},
        "training": {"steps": config.steps, "batch_size": config.batch_size, "seed": seed},
        "test": {"cache": str(folder / "test"), "max_new_tokens": 16},
    }
    return Worker(plan_distillation(parse_section(DistillConfig, tree))).run()


def _summary(accuracy: list[float], base: list[float]) -> dict[str, Any]:
    """With the gain over `base`, seed by seed, and its standard error (0 for a single seed)."""
    gains = np.array(accuracy) - np.array(base)
    error = float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else 0.0
    return {
        "accuracy": accuracy,
        "mean": float(np.mean(accuracy)),
        "gain": float(gains.mean()),
        "standard_error": error,
    }


def _write(folder: Path, scenes: int, split: Split, seed: int, questions: int) -> None:
    write_corpus(folder, scenes, SAMPLES_PER_SHARD, seed=seed, split=split, questions_per_image=questions)


def _remove_answers(source: Path, target: Path) -> None:
    """The same shards, without a word of what is true."""
    target.mkdir(parents=True, exist_ok=True)
    for shard in sorted(source.glob("*.tar")):
        with webdataset.TarWriter(str(target / f"unlabelled-{shard.name}"), encoder=False, mtime=0) as writer:
            for sample in _samples(shard):
                record = json.loads(sample["json"])
                del record["answer"]
                writer.write({**sample, "json": json.dumps(record).encode()})


def _samples(shard: Path) -> Iterator[dict[str, Any]]:
    yield from webdataset.WebDataset(str(shard), shardshuffle=False)
