"""Known tokens are kept as they are, without a look at anything."""

from __future__ import annotations

import pytest
import torch

from tests.kv.prefixes import assert_same
from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.config import MethodConfig
from trio_ray.method.rows import PackedRows
from trio_ray.method.selector import Selector
from trio_ray.method.selectors import SELECTORS
from trio_ray.method.visionzip import VisionZip
from trio_ray.model import replica as replica_module
from trio_ray.model.known import KnownIndicesError, KnownMethod
from trio_ray.model.replica import Replica, make_schedule


@pytest.mark.parametrize("selector", [kind() for kind in SELECTORS.values()], ids=list(SELECTORS))
def test_prefixes_of_known_tokens_are_bit_for_bit_those_of_the_selection(llama: Replica, selector: Selector) -> None:
    samples = prepare(llama, samples_of_all_grids(7))
    schedule = make_schedule(MethodConfig(retention=0.3), 8)
    selected = llama.prefill(samples, schedule, selector, top_k=5)
    method = KnownMethod(schedule.prune_points, selector.positions, top_k=5)
    again = llama.prefill_known(samples, [[kept.tolist() for kept in prefix.kept] for prefix in selected], method)
    for ours, truth in zip(again, selected, strict=True):
        assert_same(ours, truth)


@pytest.mark.parametrize("retention", [1.0, 0.3])
def test_other_families_batches_and_the_encoder_step_agree_too(replica: Replica, retention: float) -> None:
    samples = prepare(replica, samples_of_all_grids(5))
    config = MethodConfig(retention=retention, encoder="visionzip")
    schedule = make_schedule(config, 8)
    zipper = VisionZip()
    selected = replica.prefill(samples, schedule, replica_module.make_selector(config), zipper=zipper)
    kept = [[points.tolist() for points in prefix.kept] for prefix in selected]
    method = KnownMethod(schedule.prune_points, "compact", zipper=zipper)
    alone = [replica.prefill_known([one], [own], method)[0] for one, own in zip(samples, kept, strict=True)]
    for ours, truth in zip(alone, selected, strict=True):
        assert [points.tolist() for points in ours.kept] == [points.tolist() for points in truth.kept]
        for a, b in zip(ours.segments, truth.segments, strict=True):
            assert torch.allclose(a.keys, b.keys, atol=2e-5)
            assert torch.equal(a.position, b.position)


def test_another_reduction_than_the_stored_one_is_refused_by_the_samples_key(llama: Replica) -> None:
    samples = prepare(llama, samples_of_all_grids(3))
    config = MethodConfig(retention=0.3, encoder="visionzip")
    schedule, zipper = make_schedule(config, 8), VisionZip()
    selected = llama.prefill(samples, schedule, replica_module.make_selector(config), zipper=zipper)
    kept = [[points.tolist() for points in prefix.kept] for prefix in selected]
    first = kept[1][0]
    other = next(index for index in range(samples[1].image_tokens) if index not in first)
    gone = next(index for index in first if index in kept[1][1])
    kept[1] = [sorted({other if index == gone else index for index in points}) for points in kept[1]]
    with pytest.raises(KnownIndicesError, match="encoder's reduction") as caught:
        llama.prefill_known(samples, kept, KnownMethod(schedule.prune_points, "compact", zipper=zipper))
    assert repr(samples[1].key) in str(caught.value)


def test_no_layer_judges_anything(llama: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = prepare(llama, samples_of_all_grids(3))
    schedule = make_schedule(MethodConfig(retention=0.3), 8)
    kept = [[list(range(count)) for count in schedule.counts(sample.image_tokens)] for sample in samples]
    method = KnownMethod(schedule.prune_points, "compact")

    def no_look(*_: object) -> None:
        raise AssertionError("a row was padded for scoring")

    monkeypatch.setattr(PackedRows, "padded_images", property(no_look))
    prefixes = llama.prefill_known(samples, kept, method)
    assert [[points.tolist() for points in prefix.kept] for prefix in prefixes] == kept


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ([[0, 1]], "1 prune points, not 2"),
        ([[0, 1], [1, 0]], "do not ascend"),
        ([[0, 10_000], [0]], "do not ascend within its"),
        ([[-1, 3], [3]], "do not ascend"),
        ([[0, 1], [2]], "bring back dropped tokens"),
    ],
)
def test_indices_of_another_sample_are_refused_by_its_key(llama: Replica, kept: list[list[int]], words: str) -> None:
    samples = prepare(llama, samples_of_all_grids(1))
    with pytest.raises(KnownIndicesError, match=words) as caught:
        llama.prefill_known(samples, [kept], KnownMethod((1, 3), "compact"))
    assert repr(samples[0].key) in str(caught.value)
