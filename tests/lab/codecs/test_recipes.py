"""Codecs of the command line, and those among them that are fitted to a model's own states first."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_models import WORDS
from trio_ray.calibration.calibrate import DEFAULT_RANK
from trio_ray.calibration.choice import Fitted
from trio_ray.calibration.codec_loss import in_16_bit, store_and_load
from trio_ray.errors import ConfigError
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.codecs.registry import full_spec
from trio_ray.lab.accuracy.accuracy import Setting
from trio_ray.lab.accuracy.methods import method_config
from trio_ray.lab.accuracy.questions import HeldOutQuestion, held_out_questions
from trio_ray.lab.codecs.coded_questions import prefill
from trio_ray.lab.codecs.continued_text import LEAD, Passage, prefill_text
from trio_ray.lab.codecs.language_model import LanguageModel
from trio_ray.lab.codecs.recipes import Fit, Recipe, calibrate_on_questions, calibrate_on_text
from trio_ray.model.replica import Replica

CLOSE, LOOSE = (Recipe.parse(f"{{name: transform, divergence: {nats}}}") for nats in (0.01, 1.0))


def made(recipe: Recipe, calibration: Fitted) -> Codec:
    """Its codec, which must be possible."""
    trial = recipe.trial(lambda rank, group_layers: calibration)
    assert trial is not None
    return trial.codec


def never(rank: int, group_layers: int | None) -> Fitted:
    """For codecs that need no calibration."""
    raise AssertionError("nothing is to be fitted")


@pytest.fixture(scope="module")
def language(replicas: dict[str, Replica]) -> LanguageModel:
    replica = replicas["mistral"]
    return LanguageModel("tiny", replica.decoder, None, replica.stop_tokens, replica.device)


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    """Prefixes of random words behind one and the same token."""
    rows = torch.randint(5, len(WORDS), (30, 39), generator=torch.Generator().manual_seed(3)).tolist()
    return [Passage([1, *row], [7]) for row in rows]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("int4", "int4"),
        ("{name: int4}", "int4"),
        ("{name: int, keys: 2, values: 4}", "int: keys 2, values 4"),
        ("{name: int2, zstd: 3}", "int2: zstd 3"),
    ],
)
def test_a_codec_is_named_by_what_differs_and_needs_no_calibration(text: str, name: str) -> None:
    recipe = Recipe.parse(text)
    trial = recipe.trial(never)
    assert trial is not None
    assert (recipe.name, trial.name) == (name, name)
    assert trial.codec.spec == recipe.parameters == full_spec(recipe.spec)


def test_how_a_basis_is_fitted_belongs_to_the_measurement_alone() -> None:
    assert CLOSE.name == "transform: divergence 0.01"
    assert CLOSE.parameters == {
        "name": "transform",
        "divergence": 0.01,
        "ratio": 8.0,
        "rank": DEFAULT_RANK,
        "group_layers": None,
    }
    text = Recipe.parse("{name: transform, zstd: 3, ratio: 16, rank: 9}")
    assert (text.spec, text.fit) == ({"name": "transform", "zstd": 3}, Fit(ratio=16.0, rank=9))
    assert Recipe.parse("transform").fit == Fit()


@pytest.mark.parametrize(
    "setting",
    ["divergence: 0", "divergence: 11", "ratio: 1", "rank: 0", "rank: 1.5", "group_layers: 0", "basis: b", "sinks: 1"],
)
def test_a_fit_that_cannot_be_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition(":")[0]):
        Recipe.parse(f"{{name: transform, {setting}}}")


def test_the_basis_is_fitted_to_as_many_layers_together_as_the_recipe_says(
    language: LanguageModel, passages: list[Passage]
) -> None:
    recipe = Recipe.parse("{name: transform, divergence: 1.0, group_layers: 1, rank: 30}")
    asked = []

    def calibration(rank: int, group_layers: int | None) -> Fitted:
        asked.append((rank, group_layers))
        return calibrate_on_text(language, passages[:24], 8, rank, group_layers)

    assert recipe.trial(calibration) is not None
    assert asked == [(30, 1)]
    analyses = calibration(3, 1).calibration.analyses
    assert [analysis.layers for analysis in analyses] == [1] * language.decoder.depth
    assert all(len(kind.deviations) <= 3 for analysis in analyses for kind in analysis.kinds)


def test_the_more_may_change_the_smaller_a_fitted_codec_stores_text(
    language: LanguageModel, passages: list[Passage]
) -> None:
    calibration = calibrate_on_text(language, passages[:24], batch=4)
    states = in_16_bit(prefill_text(language, passages[24:]))
    sizes = [sum(store_and_load(states, made(recipe, calibration)).sizes) for recipe in (CLOSE, LOOSE)]
    assert sizes[1] < sizes[0] < sum(prefix.kv_bytes for prefix in states.split())
    # The row that is the same in all passages comes back the same from its own mean.
    loaded = store_and_load(states, made(LOOSE, calibration)).prefixes
    for before, after in zip(states.split(), loaded, strict=True):
        for old, new in zip(before.segments, after.segments, strict=True):
            torch.testing.assert_close(new.values[:, :LEAD].float(), old.values[:, :LEAD].float(), atol=0.02, rtol=0.02)


def test_a_codec_is_fitted_to_the_prefixes_of_the_setting(bundled: Replica, questions: list[HeldOutQuestion]) -> None:
    setting = Setting("trio", 0.222, method_config("trio", 0.222))
    others = held_out_questions(40, per_scene=1, split="validation")
    calibration = calibrate_on_questions(bundled, setting, others, batch=8)
    codec = made(LOOSE, calibration)
    samples = [bundled.preparer(10**8).prepare(question.sample) for question in questions[8:]]
    states = in_16_bit(prefill(bundled, samples, setting))  # type: ignore[arg-type]
    loaded = store_and_load(states, codec)
    assert 0 < sum(loaded.sizes) < sum(prefix.kv_bytes for prefix in states.split()) / 4
    assert [s.first_layer for s in loaded.prefixes[0].segments] == [s.first_layer for s in states.segments]


def test_there_is_no_codec_for_a_divergence_that_too_few_passages_cannot_reach(
    language: LanguageModel, passages: list[Passage]
) -> None:
    calibration = calibrate_on_text(language, passages[:8], batch=8)
    assert Recipe.parse("{name: transform, divergence: 1.0e-9}").trial(lambda rank, group_layers: calibration) is None
