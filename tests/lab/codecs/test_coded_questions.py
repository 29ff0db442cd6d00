"""Questions from stored prefixes: what is counted is what answering each question from its prefix gives."""

from __future__ import annotations

import pytest

from tests.model.corpus import prepare
from trio_ray.calibration.codec_loss import IN_MEMORY, UNROUNDED, Trial, greedy, in_16_bit, store_and_load
from trio_ray.kv.codecs.registry import full_spec, make_codec
from trio_ray.lab.accuracy.accuracy import Setting
from trio_ray.lab.accuracy.methods import method_config
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.lab.codecs.coded_questions import WAYS, CodecResult, measure_codecs, prefill
from trio_ray.model.replica import Replica

TRIALS = [Trial(name, make_codec(full_spec(name))) for name in ("raw", "int8")]
COARSE = Trial("coarse", make_codec(full_spec({"name": "int2", "protected": 4})))
SETTINGS = [Setting(name, 0.111, method_config(name, 0.111)) for name in ("trio", "trio-plus")]


@pytest.fixture(scope="module")
def results(bundled: Replica, questions: list[HeldOutQuestion]) -> list[CodecResult]:
    return measure_codecs(bundled, questions, [(SETTINGS[0], [*TRIALS, COARSE]), (SETTINGS[1], TRIALS)], batch=4)


def test_each_setting_has_its_controls_and_its_codecs(
    results: list[CodecResult], questions: list[HeldOutQuestion]
) -> None:
    controls = [IN_MEMORY, UNROUNDED]
    wanted = [("trio", name) for name in [*controls, "raw", "int8", "coarse"]]
    wanted += [("trio-plus", name) for name in [*controls, "raw", "int8"]]
    assert [(result.setting.name, result.name) for result in results] == wanted
    for result in results:
        assert {way: len(answers) for way, answers in result.answers.items()} == dict.fromkeys(WAYS, len(questions))
        assert len(result.sizes) == len(result.values) == len(result.unpruned) == len(questions)


def test_raw_differs_in_nothing_and_rounding_in_next_to_nothing(results: list[CodecResult]) -> None:
    for result in results:
        divergences = [kl for answers in result.answers.values() for one in answers for kl in one.agreement.kl]
        if result.name in (IN_MEMORY, "raw"):
            assert set(divergences) == {0.0}
        if result.name == UNROUNDED:
            assert 0 < max(map(abs, divergences)) < 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_right_answers_are_those_of_greedy_decoding_from_the_stored_prefix(
    bundled: Replica, questions: list[HeldOutQuestion], results: list[CodecResult], way: str
) -> None:
    """Also where the coded answer parts from the 16-bit one; each token's prediction is counted there, too."""
    (measured,) = [result for result in results if result.name == "coarse"]
    assert any(not all(answer.agreement.same) for answer in measured.answers[way])
    for question, answer in zip(questions, measured.answers[way], strict=True):
        samples = prepare(bundled, [question.sample])
        ids = list(samples[0].input_ids)
        tail = ids[max(n for n, token in enumerate(ids) if token == bundled.image_token_id) + 1 :]
        again = [tail if way == "question" else ids[-1:]]
        states = in_16_bit(prefill(bundled, samples, SETTINGS[0]))
        coded = store_and_load(states, COARSE.codec).prefixes
        given, wanted = (greedy(bundled.decoder, p, again, 16, bundled.stop_tokens)[0] for p in (coded, states.split()))
        assert answer.right == (bundled.writer.decode(given) == question.answer)
        assert all(answer.agreement.same) == (given == wanted)
        assert len(answer.agreement.kl) == len(wanted)


def test_sizes_are_those_of_the_samples(
    bundled: Replica, questions: list[HeldOutQuestion], results: list[CodecResult]
) -> None:
    samples = prepare(bundled, [question.sample for question in questions])
    row = 2 * 6 * 32
    (raw, *_) = [result for result in results if result.name == "raw"]
    (coarse,) = [result for result in results if result.name == "coarse"]
    assert raw.unpruned == coarse.unpruned == [16 * row * sample.rows for sample in samples]
    prefixes = prefill(bundled, samples, SETTINGS[0]).split()
    values = [sum(s.layers * s.rows for s in prefix.segments) * row for prefix in prefixes]
    # Rows that a codec leaves out were still to be stored.
    assert raw.values == coarse.values == values
    assert all(size < 2 * count for size, count in zip(raw.sizes, values, strict=True))
    assert all(size < full / 3 for size, full in zip(coarse.sizes, raw.sizes, strict=True))
