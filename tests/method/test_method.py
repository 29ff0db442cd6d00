"""A method is built once, stored as plain JSON, read back as itself, and refused by its field where it cannot work."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.errors import ConfigError
from trio_ray.method.method import Method
from trio_ray.method.schedule import AUTHORS_SHAPE
from trio_ray.method.selectors.catalogue import AbsentSelector, bundled_selectors
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.replica import Replica


def test_the_default_is_the_authors_at_11_percent() -> None:
    method = Method.build(32)
    assert method.selector == Trio()
    assert method.schedule.prune_points == AUTHORS_SHAPE.prune_points
    assert method.schedule.retention == 0.111
    assert method.schedule.mean_tokens(576) == pytest.approx(64, abs=0.6)
    assert (method.positions, method.layout, method.encoder_reducer) == ("compact", "ragged", None)


@pytest.mark.parametrize("image_tokens", [576, 2880, 100_000])
@pytest.mark.parametrize("layers", [16, 32, 80])
def test_a_fixed_budget_is_met_by_the_default_prune_points(layers: int, image_tokens: int) -> None:
    schedule = Method.build(layers, tokens=64).schedule
    assert schedule.mean_tokens(image_tokens) == pytest.approx(64, abs=0.5)
    assert min(schedule.counts(image_tokens)) > 10
    assert schedule.has_room_for(image_tokens)


def test_64_tokens_of_2880_are_never_exceeded() -> None:
    assert Method.build(32, tokens=64).schedule.mean_tokens(2880) <= 64


def test_trio_plus_has_a_schedule_and_positions_of_its_own() -> None:
    method = Method.build(16, selector="trio-plus")
    assert method.schedule.prune_points == (0, 1, 2, 4, 6, 9)
    assert method.schedule.weights == (100, 75, 55, 40, 9, 4)
    assert method.positions == "original"
    assert Method.build(16, selector="trio-plus", positions="compact").positions == "compact"


@pytest.mark.parametrize(
    "settings",
    [
        *({"selector": name} for name in bundled_selectors()),
        {"retention": 1 / 9},
        {"tokens": 20.5},
        {"keep": [9, 3], "prune_points": [1, 4]},
        {"settings": {"threshold": 0.1 + 0.2, "supervised_rows": [-1, -3]}, "positions": "original"},
        {"encoder": "visionzip", "retention": 0.3},
        {"layout": "uniform", "selector": "trio-plus"},
        {"full_depth": 0.5},
        {"dropped": "represented", "layout": "uniform"},
        {"full_depth": 1.0, "keep": [9, 3], "prune_points": [1, 4]},
    ],
    ids=str,
)
def test_it_comes_back_from_json_as_itself(settings: dict[str, Any]) -> None:
    method = Method.build(8, **settings)
    stored = method.to_dict()
    assert Method.from_dict(json.loads(json.dumps(stored))) == method
    assert Method.from_dict(stored).to_dict() == stored


def test_a_selector_may_have_other_defaults_where_layers_run_on_all_tokens() -> None:
    """What is given counts in any case; a selector that declares nothing keeps its defaults."""
    usual, deep = (Method.build(16, selector="trio-plus", full_depth=depth) for depth in (0.0, 0.5))
    assert (deep.schedule.prune_points, deep.schedule.weights) == ((0, 1, 2, 4, 6, 10), (100, 80, 60, 40, 20, 2))
    assert (usual.selector.settings["later_sample"], deep.selector.settings["later_sample"]) == (0.25, 0.0)
    given = Method.build(
        16, selector="trio-plus", full_depth=0.5, settings={"later_sample": 0.5}, prune_points=(0, 8), weights=(2, 1)
    )
    assert (given.selector.settings["later_sample"], given.schedule.weights) == (0.5, (2, 1))
    assert Method.build(16, full_depth=0.5).schedule.prune_points == Method.build(16).schedule.prune_points


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"prune_points": (1, 40), "weights": (2, 1), "retention": 0.5}, "method.prune_points"),
        ({"prune_points": (16,), "weights": (1,), "retention": 0.4}, "method.retention"),
        ({"prune_points": (1, 2, 3, 4, 5), "retention": 0.5}, "method.weights"),
        ({"encoder": "visionzip", "prune_points": (1, 5)}, "method.prune_points"),
        ({"encoder": "visionzip", "positions": "original"}, "method.positions"),
        ({"encoder": "visionzip", "full_depth": 0.5}, "method.full_depth"),
        ({"encoder": "visionzip", "dropped": "represented"}, "method.dropped"),
        ({"layout": "uniform", "prune_points": (0, 4)}, "method.layout"),
        ({"layout": "uniform", "positions": "original"}, "method.layout"),
        ({"selector": "best"}, "method.selector"),
        ({"settings": {"tau": 1}}, "method.settings.tau"),
    ],
)
def test_what_cannot_work_is_refused_by_its_field(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Method.build(32, **settings)
    assert caught.value.field == field


@pytest.mark.parametrize("selector", ["trio", "trio-plus", "random"])
@pytest.mark.parametrize("scope", ["prompt", "image"])
def test_a_uniform_layout_holds_the_same_rows_in_every_layer_from_position_0(
    llama: Replica, selector: str, scope: Any
) -> None:
    samples = prepare(llama, samples_of_all_grids(4))
    method = Method.build(8, layout="uniform", selector=selector, retention=0.3)
    assert method.layout == "uniform"
    for sample, prefix in zip(samples, llama.prefill(samples, method, scope=scope).prefixes, strict=True):
        (segment,) = prefix.segments
        (kept,) = prefix.kept
        assert segment.layers == 8
        assert len(kept) == round(0.3 * sample.image_tokens)
        assert int((~segment.text).sum()) == len(kept)
        # Right-aligned: the same attention as from position 0 on, since only differences of positions count.
        assert torch.equal(segment.position.diff(), torch.ones(segment.rows - 1, dtype=torch.int32))


def test_a_cache_of_an_absent_selector_can_be_read_and_prefilled_again_but_not_selected_for(llama: Replica) -> None:
    samples = prepare(llama, samples_of_all_grids(2))
    made = Method.build(8, retention=0.3)
    stored = {**made.to_dict(), "selector": "no_such_module:Mine", "settings": {"sharpness": 3}}
    method = Method.from_dict(stored)
    assert isinstance(method.selector, AbsentSelector)
    assert method.to_dict() == stored
    assert method == replace(made, selector=method.selector)
    kept = [[points.tolist() for points in prefix.kept] for prefix in llama.prefill(samples, made).prefixes]
    again = llama.prefill(samples, method, known=kept).prefixes
    assert [[points.tolist() for points in prefix.kept] for prefix in again] == kept
    with pytest.raises(ConfigError, match=r"no_such_module.*cannot be imported"):
        method.require_selector()
    with pytest.raises(ConfigError, match=r"no_such_module.*cannot be imported"):
        llama.prefill(samples, method)
