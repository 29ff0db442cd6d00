"""A replica: what a configuration means for a model, and answers as text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.config import ModelConfig, PromptConfig
from trio_ray.errors import ConfigError
from trio_ray.method.method import Method
from trio_ray.model.replica import Replica


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
    method = Method.build(replica.decoder.depth, retention=0.3)
    prepared = prepare(replica, samples_of_all_grids(5))
    for sample, prefix in zip(prepared, replica.prefill(prepared, method).prefixes, strict=True):
        assert {segment.keys.dtype for segment in prefix.segments} == {getattr(torch, dtype)}
        assert tuple(len(kept) for kept in prefix.kept) == method.schedule.counts(sample.image_tokens)
        assert bool(prefix.top_logprobs.isfinite().all())


def test_the_last_image_is_kept_without_those_before_it(llama: Replica) -> None:
    prepared = prepare(llama, samples_of_all_grids(3))
    llama.embed(prepared)
    assert llama._last_image is not None
    tokens = llama._last_image[1]
    assert tokens.untyped_storage().nbytes() == tokens.nbytes


def test_answers_are_text(llama: Replica) -> None:
    prepared = prepare(llama, samples_of_all_grids(3))
    prefixes = llama.prefill(prepared, Method.build(8, retention=0.3)).prefixes
    answers = llama.generate(prefixes, 4)
    assert len(answers) == 3
    assert all("</s>" not in answer and answer == answer.strip() for answer in answers)
