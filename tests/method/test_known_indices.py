"""Known tokens are kept as they are, without a look at anything."""

from __future__ import annotations

import pytest
import torch

from tests.kv.prefixes import assert_same
from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.method.method import Method
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.catalogue import bundled_selectors
from trio_ray.model.known import KnownIndicesError
from trio_ray.model.replica import Replica


@pytest.mark.parametrize("name", bundled_selectors())
def test_prefixes_of_known_tokens_are_bit_for_bit_those_of_the_selection(llama: Replica, name: str) -> None:
    samples = prepare(llama, samples_of_all_grids(7))
    method = Method.build(8, retention=0.3, selector=name, full_depth=0.5 if name == "trio-plus" else 0.0)
    selected = llama.prefill(samples, method, top_k=5).prefixes
    kept = [[kept.tolist() for kept in prefix.kept] for prefix in selected]
    again = llama.prefill(samples, method, top_k=5, known=kept).prefixes
    for ours, truth in zip(again, selected, strict=True):
        assert_same(ours, truth)


@pytest.mark.parametrize("retention", [1.0, 0.3])
def test_other_families_batches_and_the_encoder_step_agree_too(replica: Replica, retention: float) -> None:
    samples = prepare(replica, samples_of_all_grids(5))
    method = Method.build(8, retention=retention, encoder="visionzip")
    selected = replica.prefill(samples, method).prefixes
    kept = [[points.tolist() for points in prefix.kept] for prefix in selected]
    alone = [replica.prefill([one], method, known=[own]).prefixes[0] for one, own in zip(samples, kept, strict=True)]
    for ours, truth in zip(alone, selected, strict=True):
        assert [points.tolist() for points in ours.kept] == [points.tolist() for points in truth.kept]
        for a, b in zip(ours.segments, truth.segments, strict=True):
            assert torch.allclose(a.keys, b.keys, atol=2e-5)
            assert torch.equal(a.position, b.position)


def test_another_reduction_than_the_stored_one_is_refused_by_the_samples_key(llama: Replica) -> None:
    samples = prepare(llama, samples_of_all_grids(3))
    method = Method.build(8, retention=0.3, encoder="visionzip")
    selected = llama.prefill(samples, method).prefixes
    kept = [[points.tolist() for points in prefix.kept] for prefix in selected]
    first = kept[1][0]
    other = next(index for index in range(samples[1].image_tokens) if index not in first)
    gone = next(index for index in first if index in kept[1][1])
    kept[1] = [sorted({other if index == gone else index for index in points}) for points in kept[1]]
    with pytest.raises(KnownIndicesError, match="encoder's reduction") as caught:
        llama.prefill(samples, method, known=kept)
    assert repr(samples[1].key) in str(caught.value)


def test_no_layer_judges_anything(llama: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = prepare(llama, samples_of_all_grids(3))
    method = Method.build(8, retention=0.3)
    kept = [[list(range(count)) for count in method.schedule.counts(sample.image_tokens)] for sample in samples]

    def no_look(*_: object) -> None:
        raise AssertionError("a row was padded for scoring")

    monkeypatch.setattr(PackedRows, "padded_images", property(no_look))
    prefixes = llama.prefill(samples, method, known=kept).prefixes
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
        llama.prefill(samples, Method.build(8, prune_points=(1, 3), retention=0.5), known=[kept])
    assert repr(samples[0].key) in str(caught.value)
