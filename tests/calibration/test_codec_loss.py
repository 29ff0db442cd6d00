"""Predictions behind stored prefixes: the first answer token too comes from the rows that were stored."""

from __future__ import annotations

import math

import pytest
import torch

from tests.model.corpus import prepare
from trio_ray.calibration.codec_loss import (
    agreement,
    greedy,
    in_16_bit,
    predict,
    store_and_load,
    unstored,
    values_of,
    without_last_rows,
)
from trio_ray.config import MethodConfig
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codecs.registry import full_spec, make_codec
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica


@pytest.fixture(scope="module")
def samples(bundled: Replica, questions: list[HeldOutQuestion]) -> list[PreparedSample]:
    return prepare(bundled, [question.sample for question in questions[:6]])


def prefill(replica: Replica, samples: list[PreparedSample], **method: object) -> PrefixBatch:
    """At 11.1 % where nothing else is given; all logits' entries of the first token."""
    config = MethodConfig(**{"retention": 0.111, **method})
    return replica.prefill(samples, config.build(replica.decoder.depth), top_k=128).batch


def tails(replica: Replica, samples: list[PreparedSample]) -> list[list[int]]:
    """Tokens behind the image."""
    return [list(s.input_ids[max(n for n, t in enumerate(s.input_ids) if t == 4) + 1 :]) for s in samples]


@pytest.mark.parametrize("method", [{}, {"selector": "trio-plus"}, {"retention": 1.0}])
@pytest.mark.parametrize("rows", ["behind the image", "the last"])
def test_rows_decoded_again_predict_what_the_prefill_did(
    bundled: Replica, samples: list[PreparedSample], method: dict[str, object], rows: str
) -> None:
    """Compact and original positions, pruned and whole: in float32 nothing changes when the last rows are redone."""
    batch = prefill(bundled, samples, **method)
    prefixes = batch.split()
    again = tails(bundled, samples) if rows == "behind the image" else [[s.input_ids[-1]] for s in samples]
    assert {len(tail) for tail in again} != {0}
    predictions = predict(bundled.decoder, prefixes, again, [[prefix.first_token] for prefix in prefixes])
    for prefix, predicted in zip(prefixes, predictions, strict=True):
        assert predicted.shape == (1, 128)
        wanted = torch.empty(128).scatter_(0, prefix.top_ids.long(), prefix.top_logprobs)
        torch.testing.assert_close(predicted[0], wanted, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(predicted[0].exp(), wanted.exp(), atol=1e-5, rtol=0)
    answers = greedy(bundled.decoder, prefixes, again, 16, bundled.stop_tokens)
    assert [bundled.writer.decode(answer) for answer in answers] == bundled.generate(prefixes, 16)


def test_every_following_token_is_predicted_from_those_before_it(
    bundled: Replica, samples: list[PreparedSample]
) -> None:
    """Teacher-forced at once as token by token; the runs may differ in length."""
    prefixes = prefill(bundled, samples).split()
    again = tails(bundled, samples)
    following = [[7, 20, 31, 9][: 1 + number % 4] for number in range(len(samples))]
    together = predict(bundled.decoder, prefixes, again, following)
    for prefix, tail, after, predicted in zip(prefixes, again, following, together, strict=True):
        assert len(predicted) == len(after)
        for step, row in enumerate(predicted):
            (alone,) = predict(bundled.decoder, [prefix], [tail], [[*after[:step], after[step]]])
            torch.testing.assert_close(row, alone[step], atol=1e-3, rtol=1e-3)


def test_what_is_stored_bit_for_bit_predicts_the_very_same(bundled: Replica, samples: list[PreparedSample]) -> None:
    states = in_16_bit(prefill(bundled, samples, retention=0.222))
    memory, loaded = unstored(states), store_and_load(states, make_codec(full_spec("raw")))
    again, following = tails(bundled, samples), [[7, 9]] * len(samples)
    for wanted, got in zip(
        predict(bundled.decoder, memory.prefixes, again, following),
        predict(bundled.decoder, loaded.prefixes, again, following),
        strict=True,
    ):
        assert torch.equal(wanted, got)
    assert memory.sizes == [2 * values_of(prefix) for prefix in memory.prefixes]
    # More than nothing but zstd, less than the states and a header.
    assert all(0.4 * size < stored < size for size, stored in zip(memory.sizes, loaded.sizes, strict=True))


def test_a_coarser_codec_is_smaller_and_differs_more(bundled: Replica, samples: list[PreparedSample]) -> None:
    states = in_16_bit(prefill(bundled, samples))
    again, following = tails(bundled, samples), [[7, 9]] * len(samples)
    reference = torch.cat(predict(bundled.decoder, states.split(), again, following))
    divergence, sizes = [], []
    for name in ("int8", "int2"):
        loaded = store_and_load(states, make_codec(full_spec(name)))
        coded = torch.cat(predict(bundled.decoder, loaded.prefixes, again, following))
        divergence.append(sum(agreement(reference, coded).kl))
        sizes.append(sum(loaded.sizes))
    assert 0 < divergence[0] < divergence[1] / 10
    assert sizes[1] < sizes[0]


def test_rows_are_cut_from_every_segment_and_from_the_length(bundled: Replica, samples: list[PreparedSample]) -> None:
    (prefix, *_) = prefill(bundled, samples).split()
    shorter = without_last_rows(prefix, 3)
    assert shorter.length == prefix.length - 3
    for before, after in zip(prefix.segments, shorter.segments, strict=True):
        assert after.rows == before.rows - 3
        assert torch.equal(after.keys, before.keys[:, :-3])
        assert torch.equal(after.values, before.values[:, :-3])
        assert after.position.tolist() == before.position.tolist()[:-3]
        assert after.text.tolist() == before.text.tolist()[:-3]
        assert after.position[-1] == shorter.length - 1


def test_float32_states_are_rounded_and_16_bit_ones_left_alone(bundled: Replica, samples: list[PreparedSample]) -> None:
    exact = prefill(bundled, samples)
    rounded = in_16_bit(exact)
    for before, after in zip(exact.segments, rounded.segments, strict=True):
        assert torch.equal(after.keys, before.keys.bfloat16())
        assert torch.equal(after.values, before.values.bfloat16())
    assert in_16_bit(rounded) is rounded


def test_divergence_is_that_of_the_definition() -> None:
    reference = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    coded = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]).log()
    found = agreement(reference, coded)
    assert found.kl == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2), 0.0))
    assert found.same == (False, True)
