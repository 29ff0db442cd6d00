"""Image features and whole prompts' embeddings equal those of the Hugging Face model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.corpus import SIZES, hugging_face_inputs, make_sample, prepare, samples_of_all_grids
from trio_ray.errors import ModelError
from trio_ray.method.visionzip import VisionZip
from trio_ray.model import vision
from trio_ray.model.replica import Replica
from trio_ray.model.vision import VisionEncoder


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """Largest difference, in units of the largest value; 1 where the shapes differ."""
    return float((ours - truth).abs().max() / truth.abs().max()) if ours.shape == truth.shape else 1.0


@pytest.mark.parametrize("tiles_per_batch", [1, 3, 64])
def test_features_of_many_images_at_once_equal_get_image_features(
    llama: Replica, processors: dict[str, Any], tiles_per_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "TILES_PER_BATCH", tiles_per_batch)
    samples = [make_sample([size], "what ?", seed) for seed, size in enumerate(SIZES)]
    prepared = prepare(llama, samples)
    hidden, rows = llama.embed(prepared)
    ours = hidden[rows.image_rows].split(list(rows.image_counts))
    for sample, ready, features in zip(samples, prepared, ours, strict=True):
        inputs = hugging_face_inputs(processors["llama"], sample, ready.prompt)
        with torch.no_grad():
            output = llama.model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
        truth = output.pooler_output if hasattr(output, "pooler_output") else output
        assert relative_error(features, truth[0]) < 1e-5


def test_packed_embeddings_equal_the_models_merged_inputs(replica: Replica, processors: dict[str, Any]) -> None:
    """Text, image features and newlines stand where Hugging Face's forward puts them, with two pictures as well."""
    seen: list[Tensor] = []

    def remember(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"])

    samples = samples_of_all_grids(14)
    prepared = prepare(replica, samples)
    hidden, rows = replica.embed(prepared)
    handle = replica.model.model.language_model.register_forward_pre_hook(remember, with_kwargs=True)  # type: ignore[operator, union-attr]
    try:
        for number, (sample, ready) in enumerate(zip(samples, prepared, strict=True)):
            inputs = hugging_face_inputs(processors["llama"], sample, ready.prompt)
            with torch.no_grad():
                replica.model(**inputs)
            ours = hidden[rows.offsets[number] : rows.offsets[number + 1]]
            assert relative_error(ours, seen[-1][0]) < 1e-5
    finally:
        handle.remove()


def test_an_image_that_several_questions_share_passes_the_tower_once(
    llama: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a batch, across the boundary of two batches that follow each other, and with an encoder's reduction."""
    encoded: list[int] = []
    encode = llama.vision.encode

    def count(tiles: Tensor, *args: Any, **kwargs: Any) -> Any:
        encoded.append(len(tiles))
        return encode(tiles, *args, **kwargs)

    monkeypatch.setattr(llama.vision, "encode", count)
    monkeypatch.setattr(llama, "_last_image", None)
    first, second = make_sample([(40, 50)], "what is it ?", 1), make_sample([(50, 40)], "how many ?", 2)
    questions = prepare(llama, [first, first, second, second, second])
    llama.embed(questions[:3])
    assert encoded == [sum(len(question.images[0].tiles) for question in (questions[0], questions[2]))]
    llama.embed(questions[3:])
    assert len(encoded) == 1
    llama.embed(questions, reduced_to=[20, 12, 20, 16, 12], encoder_reducer=VisionZip())
    assert encoded[1:] == encoded[:1]


def test_another_vision_tower_is_refused(llama: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.model.config.vision_config, "model_type", "siglip_vision_model")  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="siglip_vision_model"):
        VisionEncoder(llama.model.model, llama.tiler, torch.float32)


def test_features_with_the_class_token_are_refused(llama: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.model.config, "vision_feature_select_strategy", "full")  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="vision_feature_select_strategy 'full'"):
        VisionEncoder(llama.model.model, llama.tiler, torch.float32)
