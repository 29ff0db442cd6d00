"""A replica: what a configuration means for a model, and answers as text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.config import MethodConfig, ModelConfig, PromptConfig
from trio_ray.errors import ConfigError
from trio_ray.method.schedule import AUTHORS_PRUNE_POINTS
from trio_ray.model.replica import Replica, make_schedule, make_selector


def test_the_default_schedule_is_the_authors_at_11_percent() -> None:
    schedule = make_schedule(MethodConfig(), 32)
    assert schedule.prune_points == AUTHORS_PRUNE_POINTS
    assert schedule.retention == 0.111
    assert schedule.mean_tokens(576) == pytest.approx(64, abs=0.6)


@pytest.mark.parametrize("image_tokens", [576, 2880, 100_000])
@pytest.mark.parametrize("layers", [16, 32, 80])
def test_a_fixed_budget_is_met_by_the_default_prune_points(layers: int, image_tokens: int) -> None:
    schedule = make_schedule(MethodConfig(tokens=64), layers)
    assert schedule.mean_tokens(image_tokens) == pytest.approx(64, abs=0.5)
    assert min(schedule.counts(image_tokens)) > 10
    assert schedule.has_room_for(image_tokens)


def test_64_tokens_of_2880_are_never_exceeded() -> None:
    assert make_schedule(MethodConfig(tokens=64), 32).mean_tokens(2880) <= 64


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (MethodConfig(prune_points=(1, 40), weights=(2, 1), retention=0.5), "method.prune_points"),
        (MethodConfig(prune_points=(16,), weights=(1,), retention=0.4), "method.retention"),
        (MethodConfig(prune_points=(1, 2, 3, 4, 5), retention=0.5), "method.weights"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_its_field(config: MethodConfig, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_schedule(config, 32)
    assert caught.value.field == field


def test_settings_reach_the_selector() -> None:
    selector = make_selector(MethodConfig(threshold=0.6, supervised_rows=(-3, -2)))
    assert selector.threshold == 0.6
    assert getattr(selector, "supervised") == (-3, -2)  # noqa: B009


def test_a_replica_of_a_missing_attention_backend_is_refused(model_folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"model\.attention"):
        Replica.load(ModelConfig(name=str(model_folders["llama"]), attention="fa3"), device=torch.device("cpu"))


def test_a_template_string_reaches_the_prompts(model_folders: dict[str, Path]) -> None:
    config = ModelConfig(name=str(model_folders["llama"]), dtype="float32")
    replica = Replica.load(config, PromptConfig(template="describe {prompt} briefly"), torch.device("cpu"))
    (prepared, *_) = prepare(replica, samples_of_all_grids(1))
    assert prepared.prompt.startswith("describe <image>")
    assert prepared.prompt.endswith("briefly")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_prefixes_keep_the_budget_and_their_dtype(model_folders: dict[str, Path], dtype: str) -> None:
    config = ModelConfig(name=str(model_folders["qwen2"]), dtype=dtype)
    replica = Replica.load(config, device=torch.device("cpu"))
    schedule = make_schedule(MethodConfig(retention=0.3), replica.decoder.depth)
    prepared = prepare(replica, samples_of_all_grids(5))
    for sample, prefix in zip(
        prepared, replica.prefill(prepared, schedule, make_selector(MethodConfig())), strict=True
    ):
        assert {segment.keys.dtype for segment in prefix.segments} == {getattr(torch, dtype)}
        assert tuple(len(kept) for kept in prefix.kept) == schedule.counts(sample.image_tokens)
        assert bool(prefix.top_logprobs.isfinite().all())


def test_the_last_image_is_kept_without_those_before_it(llama: Replica) -> None:
    prepared = prepare(llama, samples_of_all_grids(3))
    llama.embed(prepared)
    assert llama._last_image is not None
    tokens = llama._last_image[1]
    assert tokens.untyped_storage().nbytes() == tokens.nbytes


def test_answers_are_text(llama: Replica) -> None:
    prepared = prepare(llama, samples_of_all_grids(3))
    prefixes = llama.prefill(prepared, make_schedule(MethodConfig(retention=0.3), 8), make_selector(MethodConfig()))
    answers = llama.generate(prefixes, 4)
    assert len(answers) == 3
    assert all("</s>" not in answer and answer == answer.strip() for answer in answers)
