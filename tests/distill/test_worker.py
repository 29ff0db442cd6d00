"""A training learns, goes on where it stopped, and leaves a student behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.distill.conftest import MakeCache, MakeConfig
from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.distill.checkpoint import CHECKPOINT
from trio_ray.distill.config import DistillConfig, TrainingConfig
from trio_ray.distill.job import plan_distillation
from trio_ray.distill.training import StepReport, learning_rate
from trio_ray.distill.worker import Worker
from trio_ray.errors import ConfigError, IdentityMismatch, ObjectDamaged
from trio_ray.lab.scenes.corpus import write_corpus
from trio_ray.model.replica import Replica
from trio_ray.store.local import LocalStore

CPU = torch.device("cpu")


def train(config: DistillConfig) -> tuple[dict[str, Any], list[StepReport]]:
    reports: list[StepReport] = []
    metrics = Worker(plan_distillation(config), CPU).run(reports.append)
    return metrics, reports


def weights(config: DistillConfig) -> dict[str, torch.Tensor]:
    return load_file(Path(config.output) / "student" / "model.safetensors")


class Interrupted(Exception):
    """What stops a training in the middle."""


def test_a_training_that_was_stopped_ends_as_one_that_was_not(make_config: MakeConfig, tmp_path: Path) -> None:
    """Order, moments and learning rate go on; what was done since the last checkpoint is done again."""
    training = {"checkpoint_every": 2, "log_every": 1}
    whole = make_config(output=str(tmp_path / "whole"), training=training)
    train(whole)
    parted = make_config(training=training)

    def stop(report: StepReport) -> None:
        if report.step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        Worker(plan_distillation(parted), CPU).run(stop)
    metrics, reports = train(parted)
    assert [report.step for report in reports] == [5, 6]
    assert metrics["steps"] == {"all": 6, "this_run": 2}
    ours, expected = weights(parted), weights(whole)
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
    lines = [(Path(c.output) / "losses.jsonl").read_text().splitlines() for c in (parted, whole)]
    steps = [[json.loads(line)["step"] for line in found] for found in lines]
    assert steps == [[1, 2, 3, 4, 5, 6]] * 2


def test_a_training_killed_between_two_writes_goes_on_with_all_its_losses(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was: a checkpoint never stands without the losses before it."""
    config = make_config(training={"checkpoint_every": 2, "log_every": 1})
    worker = Worker(plan_distillation(config), CPU)

    def die(store: LocalStore, name: str, data: bytes) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put", die)  # what the losses are written by
        with pytest.raises(Interrupted):
            worker.run()
    train(config)
    lines = (Path(config.output) / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_whose_losses_were_removed_is_gone_on_from(make_config: MakeConfig) -> None:
    config = make_config(training={"log_every": 1})
    train(config)
    (Path(config.output) / "losses.jsonl").unlink()
    metrics, _ = train(config)
    assert metrics["steps"] == {"all": 6, "this_run": 0}


def test_a_checkpoint_of_other_settings_is_refused_by_name(make_config: MakeConfig) -> None:
    train(make_config())
    with pytest.raises(ConfigError, match=r"settings\.loss\.teacher = 0\.5, this run has 1\.0"):
        train(make_config(loss={"teacher": 1.0}))
    metrics, reports = train(make_config(training={"log_every": 3}))
    assert reports == []
    assert metrics["steps"] == {"all": 6, "this_run": 0}


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_checkpoint_is_named(make_config: MakeConfig, damage: str) -> None:
    config = make_config()
    train(config)
    file = Path(config.output) / CHECKPOINT
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ObjectDamaged, match=r"checkpoint\.safetensors: is no checkpoint"):
        train(config)


def test_without_its_weight_the_teacher_changes_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    """So two students that differ in this weight alone differ by the teacher."""
    heads = []
    for number, (teacher, temperature) in enumerate([(0.0, 1.0), (0.0, 3.0), (1.0, 1.0)]):
        loss = {"truth": 1.0, "teacher": teacher, "temperature": temperature}
        config = make_config(output=str(tmp_path / str(number)), loss=loss)
        train(config)
        heads += [tensor for name, tensor in weights(config).items() if name.endswith("lm_head.weight")]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_from_a_kv_cache_the_teacher_computes_what_another_cache_stores(
    make_config: MakeConfig, make_cache: MakeCache, tmp_path: Path
) -> None:
    """The true answers' tokens are the same, so the losses on them are."""
    stored = make_config(output=str(tmp_path / "stored"), loss={"truth": 1.0, "teacher": 0.0})
    computed = make_config(
        cache=make_cache(cache__level="embeds").uri,
        prefixes=make_cache().uri,
        output=str(tmp_path / "computed"),
        loss={"truth": 1.0, "teacher": 0.0},
    )
    reports = [train(config)[1] for config in (stored, computed)]
    losses = [[report.truth for report in found] for found in reports]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert all(report.teacher > 0 for report in reports[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": ""}, "cache: is missing"),
        ({"output": ""}, "output: is missing"),
        ({"student": {"layers": 9}}, r"student\.layers: 9 are more than the teacher's 8"),
        (
            {"replicas": {"max": 60}, "training": {"batch_size": 64}},
            r"cache: .* each of 60 replicas needs one",
        ),
        ({"replicas": {"max": 5}}, r"replicas\.max: 5 replicas cannot share batches of 4"),
        ({"test": {"cache": "kv"}}, r"test\.cache: .* stores kv; students read input embeddings"),
        ({"cache": "kv"}, "cache: .* stores kv"),
        ({"cache": "image"}, r"cache: .* ends with the image; students read whole prompts"),
        ({"cache": "plain"}, r"cache: .* stores no targets: precompute with cache\.targets: top_k, or set prefixes"),
        ({"prefixes": "plain"}, r"prefixes: .* must be of level kv"),
        ({"output": "/proc/none/here"}, "output: "),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_loaded(
    make_config: MakeConfig, make_cache: MakeCache, settings: dict[str, Any], message: str
) -> None:
    made = {
        "kv": {},
        "plain": {"cache__level": "embeds"},
        "image": {"cache__level": "embeds", "cache__scope": "image", "cache__targets": "top_k"},
    }

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: resolved(inner) for name, inner in value.items()}
        return make_cache(**made[value]).uri if value in made else value

    with pytest.raises(ConfigError, match=message):
        plan_distillation(make_config(**resolved(settings)))


def test_another_teacher_is_refused(make_config: MakeConfig, model_folders: dict[str, Path]) -> None:
    with pytest.raises(IdentityMismatch, match=r"model\."):
        plan_distillation(make_config(teacher={"name": str(model_folders["qwen2"])}))


def test_learning_rates_rise_then_fall_to_the_last() -> None:
    config = TrainingConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An embeds cache of rendered scenes, by the bundled model."""
    folder = tmp_path_factory.mktemp("scenes")
    write_corpus(folder / "corpus", 6, samples_per_shard=24, split="train")
    settings = {"cache__level": "embeds", "cache__targets": "top_k"}
    config = job_config(Path(BUNDLED_MODEL), folder / "corpus" / "*.tar", folder / "cache", **settings)
    run_here(config, Replica.load(ModelConfig(dtype="float32")))
    return config.output


def test_a_student_learns_what_an_untrained_one_does_not_know(make_config: MakeConfig, scenes: str) -> None:
    """Two of the bundled model's sixteen layers learn a few questions by heart, and the stored student has them."""
    bundled = {"teacher": {"name": BUNDLED_MODEL}, "cache": scenes, "test": {"cache": scenes}}
    training = {"steps": 40, "batch_size": 8, "warmup_steps": 5}
    metrics, reports = train(make_config(**bundled, training=training))
    assert reports[-1].truth < 0.3 * reports[0].truth
    assert reports[-1].teacher < 0.3 * reports[0].teacher
    untrained = {"steps": 1, "learning_rate": 1e-9}
    before, _ = train(make_config(**bundled, training=untrained, output=f"{make_config().output}-untrained"))
    assert metrics["test"]["questions"] == before["test"]["questions"] == len(PrunedCache(scenes))
    assert metrics["test"]["accuracy"] > before["test"]["accuracy"] + 0.3
