"""Stored prefixes in Hugging Face's own `generate`: the same answers as ours, alone and in ragged batches."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.kv.prefix import Prefix
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.decode.engine import generate
from trio_ray.model.hugging_face import generate_inputs
from trio_ray.model.replica import Replica

NEW_TOKENS = 10


def prefixes_of(replica: Replica, count: int) -> list[Prefix]:
    """Prefixes of samples of many lengths."""
    schedule = Schedule(8, (1, 3, 5), retention=0.25)
    return replica.prefill(prepare(replica, samples_of_all_grids(count)), Method(schedule, Trio())).prefixes


def answers_of(model: Any, prefixes: list[Prefix]) -> list[list[int]]:
    """Answers by `generate`, first token included; what stands behind a stop token is cut off."""
    with generate_inputs(model, prefixes) as inputs:
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS - 1, do_sample=False)
    answers = output[:, inputs["input_ids"].shape[1] - 1 :].tolist()
    stop = model.generation_config.eos_token_id
    return [answer[: answer.index(stop) + 1] if stop in answer else answer for answer in answers]


def test_generate_alone_answers_as_ours(replica: Replica, fresh_model: Any) -> None:
    prefixes = prefixes_of(replica, 6)
    ours = generate(replica.decoder, prefixes, NEW_TOKENS, replica.stop_tokens)
    assert [answers_of(fresh_model, [prefix])[0] for prefix in prefixes] == ours


def test_generate_in_a_ragged_batch_answers_as_ours(replica: Replica, fresh_model: Any) -> None:
    prefixes = prefixes_of(replica, 9)
    assert len({prefix.length for prefix in prefixes}) > 6
    ours = generate(replica.decoder, prefixes, NEW_TOKENS, replica.stop_tokens)
    assert answers_of(fresh_model, prefixes) == ours


def test_the_cache_reports_the_logical_length(replica: Replica, fresh_model: Any) -> None:
    prefixes = prefixes_of(replica, 3)
    with generate_inputs(fresh_model, prefixes) as inputs:
        cache = inputs["past_key_values"]
    assert cache.get_seq_length() == max(prefix.length for prefix in prefixes)
    assert len(cache.layers) == 8


def test_the_model_is_left_as_it_was(replica: Replica, fresh_model: Any) -> None:
    """Its attention, also where `generate` fails; and a model that is not to use a cache does so here."""
    prefixes = prefixes_of(replica, 2)
    ours = generate(replica.decoder, prefixes, NEW_TOKENS, replica.stop_tokens)
    fresh_model.generation_config.use_cache = fresh_model.config.use_cache = False
    before = fresh_model.config.get_text_config()._attn_implementation
    assert answers_of(fresh_model, prefixes) == ours
    assert fresh_model.config.get_text_config()._attn_implementation == before
    with pytest.raises(ValueError, match="model_kwargs"), generate_inputs(fresh_model, prefixes) as inputs:
        fresh_model.generate(**inputs, no_such_argument=1)
    assert fresh_model.config.get_text_config()._attn_implementation == before
