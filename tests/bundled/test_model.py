"""What is promised of the bundled model: it ships whole, loads without a network, and answers what it sees."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

from jobs.tiny.evaluation import evaluate
from trio_ray.lab.scenes import compose, make_questions
from trio_ray.lab.scenes.families import SHAPES
from trio_ray.lab.scenes.views import PINPOINTS
from trio_ray.model.loading import BUNDLED_FOLDER


@pytest.fixture(scope="module")
def processor() -> LlavaNextProcessor:
    return LlavaNextProcessor.from_pretrained(BUNDLED_FOLDER)


def test_weights_are_small_and_in_safetensors() -> None:
    weights = [path for path in BUNDLED_FOLDER.iterdir() if path.stat().st_size > 1 << 20]
    assert [path.name for path in weights] == ["model.safetensors"]
    assert weights[0].stat().st_size <= 24e6


def test_its_tensors_have_the_hubs_names() -> None:
    """vLLM loads these names alone; transformers would save the vision tower one level higher."""
    with safe_open(BUNDLED_FOLDER / "model.safetensors", "pt") as file:
        names = set(file.keys())
    tower = {name for name in names if name.startswith("vision_tower.")}
    assert tower
    assert all(name.startswith("vision_tower.vision_model.") for name in tower)
    assert {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight", "image_newline"} <= names


def test_the_architecture_is_llava_next_with_a_deep_decoder() -> None:
    model = LlavaNextForConditionalGeneration.from_pretrained(BUNDLED_FOLDER)
    assert model.config.vision_config.model_type == "clip_vision_model"
    assert (model.config.vision_feature_layer, model.config.vision_feature_select_strategy) == (-2, "default")
    assert model.config.text_config.num_hidden_layers >= 16
    assert model.model.image_newline.shape == (model.config.text_config.hidden_size,)
    assert {tuple(grid) for grid in model.config.image_grid_pinpoints} == set(PINPOINTS)


def test_it_answers_held_out_questions_of_every_type() -> None:
    """A sample of what the model card states: 60 questions, of which it may miss four."""
    found = evaluate(BUNDLED_FOLDER, SHAPES, 60, torch.device("cpu"), per_scene=3)
    assert found["all"]["asked"] == 60
    assert found["all"]["right"] >= 56
    assert sum(name.startswith("type ") for name in found) == 9
    assert sum(name.startswith("grid ") for name in found) >= 4


def test_the_card_states_what_the_issue_demands() -> None:
    """At least 2,000 questions over all grids, 97 % right, no type under 90 %."""
    found = json.loads((BUNDLED_FOLDER / "accuracy.json").read_text(encoding="utf-8"))
    assert found["all"]["asked"] >= 2000
    assert found["all"]["right"] >= 0.97 * found["all"]["asked"]
    assert sum(name.startswith("grid ") for name in found) == len(PINPOINTS)
    types = {name: counts for name, counts in found.items() if name.startswith("type ")}
    assert len(types) == 9
    assert all(counts["right"] >= 0.9 * counts["asked"] for counts in types.values())
    card = (BUNDLED_FOLDER / "README.md").read_text(encoding="utf-8")
    for name, counts in types.items():
        row = rf"\| {name.removeprefix('type ')} \| {counts['asked']} \| {counts['right']} \|"
        assert re.search(row, card), f"the card's row of {name} is not the measured one"


def test_every_word_of_the_scenes_is_known(processor: LlavaNextProcessor) -> None:
    for seed in range(200):
        for question in make_questions(compose(seed, "validation"), 10):
            ids = processor.tokenizer(f"{question.text} {question.answer}")["input_ids"]
            assert processor.tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("answer", ["red star, blue star", "top left", "K", "7", "yes"])
def test_answers_decode_as_they_are_written(processor: LlavaNextProcessor, answer: str) -> None:
    ids = [*processor.tokenizer(answer)["input_ids"], processor.tokenizer.eos_token_id]
    assert processor.decode(ids, skip_special_tokens=True) == answer


def test_the_supervised_rows_of_a_prompt_are_text(processor: LlavaNextProcessor) -> None:
    """TRIO takes its labels from rows S-5 .. S-2, so these must lie behind the image."""
    for seed in range(50):
        for question in make_questions(compose(seed, "test"), 9):
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            ids = processor.tokenizer(prompt)["input_ids"]
            assert processor.tokenizer.image_token_id not in ids[-6:]
