"""A student is an ordinary LLaVA-NeXT that reads what its teacher has stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

from trio_ray.config import ModelConfig
from trio_ray.distill.config import StudentConfig
from trio_ray.distill.student import build_student, layer_numbers, save_student, trained_parameters
from trio_ray.errors import ConfigError
from trio_ray.model.replica import Replica


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layers": 4}, [0, 5, 10, 15]),
        ({"layers": 1}, [0]),
        ({"layers": 16}, list(range(16))),
        ({"layers": 3, "start": "first"}, [0, 1, 2]),
        ({"layers": 3, "start": "fresh"}, [0, 1, 2]),
    ],
)
def test_which_layers_a_student_begins_with(settings: dict[str, object], expected: list[int]) -> None:
    assert layer_numbers(StudentConfig.model_validate(settings), depth=16) == expected


def test_a_student_deeper_than_its_teacher_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.layers: 17 are more than the teacher's 16"):
        layer_numbers(StudentConfig(layers=17), depth=16)


@pytest.mark.parametrize("start", ["spread", "fresh"])
def test_only_layers_norm_and_head_learn_and_all_else_is_the_teachers(
    model_folders: dict[str, Path], replica: Replica, start: str
) -> None:
    family = replica.model.config.get_text_config().model_type
    config = StudentConfig.model_validate({"layers": 3, "start": start})
    student = build_student(model_folders[family], config, seed=0)
    learns = set(trained_parameters(student))
    assert learns == {name for name in learns if name.startswith(("model.language_model.layers.", "lm_head."))} | {
        "model.language_model.norm.weight"
    }
    teacher = dict(replica.model.named_parameters())
    kept = {name for name, _ in student.named_parameters()} - learns
    assert any("vision_tower" in name for name in kept)
    for name in kept:
        assert torch.equal(student.get_parameter(name), teacher[name])
    middle, teachers = (model.model.language_model.layers for model in (student, replica.model))
    assert torch.equal(middle[1].mlp.up_proj.weight, teachers[4].mlp.up_proj.weight) is (start == "spread")


def test_fresh_weights_depend_on_the_seed_alone(model_folders: dict[str, Path]) -> None:
    config = StudentConfig(layers=2, start="fresh")
    first, again, other = (build_student(model_folders["llama"], config, seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_saved_student_is_loaded_by_hugging_face_and_as_a_replica(
    model_folders: dict[str, Path], replica: Replica, tmp_path: Path
) -> None:
    folder = model_folders[replica.model.config.get_text_config().model_type]
    student = build_student(folder, StudentConfig(layers=3), seed=0)
    save_student(student, folder, tmp_path)
    loaded = LlavaNextForConditionalGeneration.from_pretrained(tmp_path, local_files_only=True)
    assert LlavaNextProcessor.from_pretrained(tmp_path, local_files_only=True).chat_template
    ours = Replica.load(ModelConfig(name=str(tmp_path), dtype="float32"))
    assert ours.decoder.depth == loaded.config.get_text_config().num_hidden_layers == 3
    for name, parameter in student.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)
        assert torch.equal(ours.model.get_parameter(name), parameter)
