"""vLLM answers from stored prefixes what our own engine answers, in one engine for all forms of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM, SamplingParams
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from tests.export.vllm.ours import NEW_TOKENS, Ours, without_stop
from tests.export.vllm.requests import engine_options, named, prefix_ids, salt
from tests.precompute.runs import job_config, run_here
from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.errors import ConfigError, IdentityMismatch, TrioRayError
from trio_ray.export.uniform import NotPortable
from trio_ray.export.vllm_connector import TrioRayConnector
from trio_ray.lab.s3_server import S3Server
from trio_ray.model.replica import Replica

Prompts = Sequence[dict[str, Any]]


class Engine:
    """The real vLLM with the connector to the cache of scope prompt."""

    def __init__(self, cache: str) -> None:
        self.llm = LLM(**engine_options(cache))
        self.finish_reasons: list[str] = []

    @property
    def config(self) -> Any:
        """Its whole configuration."""
        return self.llm.llm_engine.vllm_config

    @property
    def kv_cache_config(self) -> Any:
        """Its blocks."""
        return self.llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config

    def answers(self, prompts: Prompts, params: Sequence[dict[str, Any]] = (), **extra: Any) -> list[list[int]]:
        """Greedy answers to all prompts as one batch, without the token that ends them."""
        sampling = [
            SamplingParams(
                temperature=0, max_tokens=NEW_TOKENS, extra_args={"kv_transfer_params": one} if one else None, **extra
            )
            for one in (params or [{}] * len(prompts))
        ]
        outputs = self.llm.generate(list(prompts), sampling, use_tqdm=False)
        self.finish_reasons = [output.outputs[0].finish_reason for output in outputs]
        return [without_stop(output.outputs[0].token_ids, (2,)) for output in outputs]


@pytest.fixture(scope="module")
def engine(ours: Ours, server: object) -> Engine:
    """One engine for all tests of this file; the server starts meanwhile."""
    return Engine(ours.caches.kv_prompt.uri)


def kv_prompts(ours: Ours, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The prompts of requests for the connector."""
    return [{"prompt_token_ids": prefix_ids(row, ours.replica.image_token_id), "cache_salt": salt(row)} for row in rows]


def image_prompts(ours: Ours, shift: int = 0) -> list[dict[str, Any]]:
    """Questions about stored image rows; with a shift, those of the sample so far behind."""
    cache = ours.caches.embeds_image
    stored = [cache.embeds(row) for row in cache.table.to_pylist()]
    rows = [item.rows[~item.text][None] for item in stored]
    shifted = rows[shift:] + rows[:shift]
    return [
        {"prompt": text, "multi_modal_data": {"image": tensor}}
        for text, tensor in zip(ours.texts, shifted, strict=True)
    ]


def equal(found: Sequence[list[int]], wanted: Sequence[list[int]]) -> int:
    """How many answers are equal."""
    return sum(one == other for one, other in zip(found, wanted, strict=True))


def test_raw_images_are_our_unpruned_answers(engine: Engine, ours: Ours) -> None:
    """Images that the cache does not hold pass the connector by."""
    prompts = [
        {"prompt": text, "multi_modal_data": {"image": image}}
        for text, image in zip(ours.texts, ours.images, strict=True)
    ]
    assert engine.answers(prompts) == ours.unpruned


def test_image_rows_of_a_ragged_batch_are_our_answers(engine: Engine, ours: Ours) -> None:
    prompts = image_prompts(ours)
    assert len({prompt["multi_modal_data"]["image"].shape for prompt in prompts}) > 3
    assert engine.answers(prompts) == ours.embeds_image


def test_prompt_embeddings_of_a_ragged_batch_are_our_answers(engine: Engine, ours: Ours) -> None:
    cache = ours.caches.embeds_prompt
    stored = [cache.embeds(row) for row in cache.table.to_pylist()]
    assert len({item.rows.shape for item in stored}) > 3
    assert engine.answers([{"prompt_embeds": item.rows} for item in stored]) == ours.embeds_prompt


def test_keys_and_values_from_s3_are_our_answers(engine: Engine, ours: Ours) -> None:
    """Also with the prompt's log-probabilities asked for, for which vLLM would load nothing."""
    prompts, params = kv_prompts(ours, ours.rows), [named(row) for row in ours.rows]
    assert engine.answers(prompts, params) == ours.prompt
    assert engine.answers(prompts[:8], params[:8], prompt_logprobs=1) == ours.prompt[:8]


def test_an_images_uuid_names_its_prefix(engine: Engine, ours: Ours) -> None:
    """The image rows say only how many there are: none of them is read."""
    prompts = [
        {
            "prompt": row["prompt"].removeprefix("<s>"),
            "multi_modal_data": {"image": torch.zeros(1, len(row["kept"][0]), 192)},
            "multi_modal_uuids": {"image": row["key"]},
        }
        for row in ours.rows[:20]
    ]
    assert engine.answers(prompts) == ours.prompt[:20]


def test_without_a_prefix_or_with_another_images_the_answers_differ(engine: Engine, ours: Ours) -> None:
    """What makes the tests above mean something."""
    rows, questions = ours.rows, len(ours.rows) // 25
    shifted = engine.answers(image_prompts(ours, questions))
    assert equal(shifted, ours.embeds_image) < 70
    ids = [{"prompt_token_ids": prompt["prompt_token_ids"]} for prompt in kv_prompts(ours, rows)]
    assert equal(engine.answers(ids), ours.prompt) < 50


def test_a_request_that_does_not_fit_its_prefix_ends_with_an_error_alone(engine: Engine, ours: Ours) -> None:
    first, other = ours.rows[0], next(row for row in ours.rows if len(row["kept"][0]) != len(ours.rows[0]["kept"][0]))
    good, wrong = kv_prompts(ours, [first, other])
    prompts = [
        good,
        {**wrong, "cache_salt": salt(first)},  # another image's rows under this key
        {"prompt_token_ids": good["prompt_token_ids"]},  # no salt
        {**good, "cache_salt": "scenes:absent"},
        good,
    ]
    params = [named(first), named(first), named(first), {"key": "absent", "shard": "scenes"}, named(first)]
    answers = engine.answers(prompts, params)
    assert engine.finish_reasons == ["stop", "error", "error", "error", "stop"]
    assert answers[0] == answers[-1] == ours.prompt[0]
    assert answers[1:4] == [[], [], []]


def test_damaged_bytes_end_their_request_and_no_other(engine: Engine, ours: Ours, s3: S3Server) -> None:
    row = ours.rows[-1]
    bucket, _, root = ours.caches.kv_prompt.uri.removeprefix("s3://").partition("/")
    client, name = s3.client(), f"{root}/{row['kv_object']}"
    whole = client.get_object(Bucket=bucket, Key=name)["Body"].read()
    damaged = bytearray(whole)
    damaged[row["kv_offset"] + row["kv_length"] // 2] ^= 1
    client.put_object(Bucket=bucket, Key=name, Body=bytes(damaged))
    engine.llm.reset_prefix_cache()
    rows = [ours.rows[0], row]
    try:
        answers = engine.answers(kv_prompts(ours, rows), [named(one) for one in rows])
        assert engine.finish_reasons == ["stop", "error"]
        assert answers[0] == ours.prompt[0]
    finally:
        client.put_object(Bucket=bucket, Key=name, Body=whole)
    assert engine.answers(kv_prompts(ours, rows), [named(one) for one in rows]) == [ours.prompt[0], ours.prompt[-1]]


@pytest.fixture(scope="module")
def other_caches(ours: Ours, corpus: Path, model_folders: dict[str, Path], tmp_path_factory: Any) -> dict[str, str]:
    """Caches that this engine must not read: of prune points behind layer 0, of embeddings, of another model."""
    folder = tmp_path_factory.mktemp("others")
    tiny = Replica.load(ModelConfig(name=str(model_folders["llama"]), dtype="float32"), device=torch.device("cpu"))
    config = job_config(Path(BUNDLED_MODEL), corpus, folder / "ragged", method__retention=0.111)
    run_here(config, ours.replica)
    config = job_config(model_folders["llama"], corpus, folder / "other", method__layout="uniform")
    run_here(config, tiny)
    return {
        "ragged": str(folder / "ragged"),
        "other": str(folder / "other"),
        "embeds": ours.caches.embeds_prompt.uri,
        "ours": ours.caches.kv_prompt.uri,
    }


@pytest.mark.parametrize(
    ("cache", "changed", "error", "said"),
    [
        ("ragged", {}, NotPortable, "method.layout: uniform"),
        ("embeds", {}, NotPortable, "cache.level: kv"),
        ("other", {}, IdentityMismatch, "model"),
        ("ours", {"model_config.dtype": torch.bfloat16}, IdentityMismatch, "model.dtype"),
        ("ours", {"parallel_config.world_size": 2}, ConfigError, "tensor"),
        ("ours", {"kv_transfer_config.kv_load_failure_policy": "recompute"}, ConfigError, "must be fail"),
        ("ours", {"kv_transfer_config.kv_connector_extra_config": {"uri": "x"}}, ConfigError, "endpoint_url"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    engine: Engine,
    other_caches: dict[str, str],
    cache: str,
    changed: dict[str, Any],
    error: type[TrioRayError],
    said: str,
) -> None:
    config = copy.copy(engine.config)
    for name in ("kv_transfer_config", "model_config", "parallel_config"):
        setattr(config, name, copy.copy(getattr(config, name)))
    config.kv_transfer_config.kv_connector_extra_config = {"cache": other_caches[cache]}
    for name, value in changed.items():
        section, _, field = name.partition(".")
        setattr(getattr(config, section), field, value)
    with pytest.raises(error, match=said):
        TrioRayConnector(config, KVConnectorRole.SCHEDULER, engine.kv_cache_config)
