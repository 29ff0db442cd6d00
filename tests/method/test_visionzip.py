"""VisionZip: what is dominant, what is merged into what, and the encoder-involved prefill around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.method.reference import reference_greedy, reference_prefill
from tests.model.corpus import make_sample, prepare, samples_of_all_grids, words
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.catalogue import bundled_selectors, make_selector
from trio_ray.method.selectors.trio import Trio
from trio_ray.method.visionzip import AUTHORS_CONTEXTUAL, VisionZip
from trio_ray.model.decode.engine import generate
from trio_ray.model.loading import load_model
from trio_ray.model.replica import Replica
from trio_ray.model.tiles import NEWLINE

ENCODER = Schedule(8, (0, 4), retention=0.4, weights=(96, 32))


def tokens(count: int, newlines: int = 0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random features, attention and keys; every few tokens one is a newline, without attention."""
    generator = torch.Generator().manual_seed(seed)
    hidden, keys = torch.randn(2, count, 12, generator=generator)
    attention = torch.rand(count, generator=generator)
    if newlines:
        attention[torch.arange(newlines) * count // newlines] = -1.0
    return hidden, attention, keys


@given(st.integers(1, 50), st.integers(0, 12), st.integers(0, 60), st.sampled_from([0.0, AUTHORS_CONTEXTUAL, 0.6, 1.0]))
def test_as_many_as_wanted_are_left_in_order(count: int, newlines: int, keep: int, contextual: float) -> None:
    reduced, index = VisionZip(contextual).reduce(*tokens(count, min(newlines, count)), keep)
    assert len(reduced) == len(index) == min(keep, count)
    assert index.tolist() == sorted(set(index.tolist()))
    assert all(0 <= number < count for number in index.tolist())


@pytest.mark.parametrize(("count", "keep", "contextual"), [(64, 20, AUTHORS_CONTEXTUAL), (40, 10, 0.5), (30, 29, 0.3)])
def test_dominant_tokens_are_unchanged_and_contextual_ones_take_in_their_nearest(
    count: int, keep: int, contextual: float
) -> None:
    """Token for token as described: the rest's evenly spaced tokens, each plus the mean of those nearest by key."""
    hidden, attention, keys = tokens(count)
    reduced, index = VisionZip(contextual).reduce(hidden, attention, keys, keep)
    merged = round(contextual * keep)
    ranked = sorted(range(count), key=lambda token: -float(attention[token]))
    dominant, rest = ranked[: keep - merged], sorted(ranked[keep - merged :])
    targets = [rest[place * len(rest) // merged] for place in range(merged)]
    takes_in: dict[int, list[int]] = {target: [] for target in targets}
    for token in rest:
        if token not in takes_in:
            near = max(targets, key=lambda target: float(F.cosine_similarity(keys[token], keys[target], dim=0)))
            takes_in[near].append(token)
    assert index.tolist() == sorted(dominant + targets)
    for number, token in zip(index.tolist(), reduced, strict=True):
        others = takes_in.get(number, [])
        expected = hidden[number] + (hidden[others].mean(0) if others else 0)
        torch.testing.assert_close(token, expected)
    assert merged > 0
    assert sum(map(len, takes_in.values())) == count - keep


def test_keeping_all_or_more_returns_all_as_they_were() -> None:
    hidden, attention, keys = tokens(30, newlines=4)
    for keep in (30, 31, 1000):
        reduced, index = VisionZip().reduce(hidden, attention, keys, keep)
        assert torch.equal(reduced, hidden)
        assert index.tolist() == list(range(30))


def test_newlines_are_taken_last_and_never_merged() -> None:
    hidden, attention, keys = tokens(40, newlines=8)
    newline = attention < 0
    for keep in range(1, 33):
        reduced, index = VisionZip(0.3).reduce(hidden, attention, keys, keep)
        assert not newline[index].any()
    for keep in range(33, 40):
        reduced, index = VisionZip(0.3).reduce(hidden, attention, keys, keep)
        assert int(newline[index].sum()) == keep - 32
        assert torch.equal(reduced[newline[index]], hidden[index[newline[index]]])


def test_the_authors_share_is_the_default() -> None:
    assert VisionZip().contextual == 10 / 64


# --- behind the vision tower ---


def test_class_attention_and_keys_are_those_of_the_last_layer_whose_features_are_used(
    llama: Replica, model_folders: dict[str, Path]
) -> None:
    """Against `output_attentions` of the same tower with eager attention: the second-last of its layers."""
    (sample,) = prepare(llama, [make_sample([(100, 30)], "what is it ?")])
    tiles = sample.images[0].tiles
    features = llama.vision.encode(tiles, with_attention=True)
    tower: Any = load_model(model_folders["llama"], torch.float32, torch.device("cpu")).model.vision_tower
    tower.set_attn_implementation("eager")
    seen: list[Tensor] = []
    handle = tower.vision_model.encoder.layers[-2].self_attn.k_proj if hasattr(tower, "vision_model") else None
    handle = handle or tower.encoder.layers[-2].self_attn.k_proj
    handle.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        output = tower(llama.tiler.normalise(tiles), output_attentions=True)
    assert len(output.attentions) == 3
    assert features.attention is not None
    assert features.keys is not None
    truth = output.attentions[-2][:, :, 0, 1:].sum(1)
    torch.testing.assert_close(features.attention, truth.flatten(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.keys, seen[0][:, 1:].flatten(0, 1), atol=1e-4, rtol=1e-4)
    assert torch.equal(features.hidden, llama.vision.encode(tiles).hidden)


def test_reduced_embeddings_are_the_projected_reduced_features(llama: Replica) -> None:
    """One image at a time, newlines in their places, text around them as in the whole prompt."""
    samples = prepare(
        llama, [make_sample([size], words(4, seed), seed) for seed, size in enumerate([(40, 50), (7, 300)])]
    )
    keep = [samples[0].image_tokens - 3, 9]
    hidden, rows = llama.embed(samples, keep, VisionZip())
    assert rows.image_counts == tuple(keep)
    for number, sample in enumerate(samples):
        (image,) = sample.images
        features = llama.vision.encode(image.tiles, with_attention=True)
        newline = image.token_map == NEWLINE
        slots = image.token_map.clamp_min(0)
        attention = features.attention[slots].masked_fill(newline, -1.0)  # type: ignore[index]
        reduced, index = VisionZip().reduce(features.hidden[slots], attention, features.keys[slots], keep[number])  # type: ignore[index]
        model: Any = llama.model.model
        with torch.no_grad():
            expected = model.multi_modal_projector(reduced)
        expected[newline[index]] = model.image_newline.detach()
        part = slice(*rows.offsets[number : number + 2])
        torch.testing.assert_close(hidden[part][rows.is_image[part]], expected, atol=1e-5, rtol=1e-4)
        assert rows.image_index[part][rows.is_image[part]].tolist() == index.tolist()
        whole, whole_rows = llama.embed([sample])
        assert torch.equal(hidden[part][~rows.is_image[part]], whole[~whole_rows.is_image])
    assert int((samples[0].images[0].token_map == NEWLINE).sum()) > 3  # so that newlines were kept, too


def test_a_budget_of_all_tokens_changes_nothing(llama: Replica) -> None:
    samples = prepare(llama, samples_of_all_grids(7))
    hidden, rows = llama.embed(samples, [sample.image_tokens for sample in samples], VisionZip())
    whole, whole_rows = llama.embed(samples)
    torch.testing.assert_close(hidden, whole, atol=1e-5, rtol=1e-4)
    assert torch.equal(rows.image_index, whole_rows.image_index)


def test_the_prefill_meets_its_schedule_over_encoder_and_decoder(llama: Replica) -> None:
    """Mean retention over all layers, counted on the rows that are stored, is the wanted one within rounding."""
    samples = prepare(llama, samples_of_all_grids(14))
    prefixes = llama.prefill(samples, Method(ENCODER, Trio(), encoder_reducer=VisionZip())).prefixes
    for sample, prefix in zip(samples, prefixes, strict=True):
        counts = ENCODER.counts(sample.image_tokens)
        text = sample.rows - sample.image_tokens
        assert [(segment.layers, segment.rows - text) for segment in prefix.segments] == [
            (4, counts[0]),
            (4, counts[1]),
        ]
        held = sum(segment.layers * (segment.rows - text) for segment in prefix.segments) / 8
        assert held == pytest.approx(0.4 * sample.image_tokens, abs=1)
        assert prefix.length == text + counts[0]
        first, second = (kept.tolist() for kept in prefix.kept)
        assert set(second) <= set(first) <= set(range(sample.image_tokens))
        assert first == sorted(first)
        assert (len(first), len(second)) == counts


@pytest.mark.parametrize("name", bundled_selectors())
def test_a_samples_reduced_prefix_does_not_depend_on_its_company(llama: Replica, name: str) -> None:
    samples = prepare(llama, samples_of_all_grids(12))
    method = Method(ENCODER, make_selector(name), encoder_reducer=VisionZip())
    alone = [llama.prefill([sample], method).prefixes[0] for sample in samples]
    for members in ([5, 0, 11, 3, 8, 1], [10, 2, 9, 4, 7, 6]):
        packed = llama.prefill([samples[member] for member in members], method).prefixes
        for member, prefix in zip(members, packed, strict=True):
            assert [k.tolist() for k in prefix.kept] == [k.tolist() for k in alone[member].kept]
            for ours, other in zip(prefix.segments, alone[member].segments, strict=True):
                assert float((ours.keys - other.keys).abs().max() / other.keys.abs().max()) < 1e-5
        answers = generate(llama.decoder, packed, 10)
        assert answers == [generate(llama.decoder, [alone[member]], 10)[0] for member in members]


def test_trio_behind_the_encoder_equals_plain_layers_over_the_reduced_prompt(replica: Replica) -> None:
    samples = prepare(replica, [make_sample([(40, 50)], words(6)), make_sample([(100, 30), (9, 9)], words(2, 1), 1)])
    prefixes = replica.prefill(samples, Method(ENCODER, Trio(), encoder_reducer=VisionZip()), top_k=40).prefixes
    language_model, head = replica.model.model.language_model, replica.model.lm_head  # type: ignore[union-attr]
    for sample, prefix in zip(samples, prefixes, strict=True):
        counts = ENCODER.counts(sample.image_tokens)
        hidden, rows = replica.embed([sample], [counts[0]], VisionZip())
        reference = reference_prefill(language_model, head, hidden, rows.is_image, (4,), (counts[1],))
        numbers = rows.image_index[rows.image_rows]
        assert prefix.kept[0].tolist() == numbers.tolist()
        assert prefix.kept[1].tolist() == numbers[reference.kept[0]].tolist()
        truth = reference.logits.log_softmax(-1)[prefix.top_ids.long()]
        torch.testing.assert_close(prefix.top_logprobs, truth, atol=1e-4, rtol=0)
        answer, _ = reference_greedy(language_model, head, reference, 8)
        assert generate(replica.decoder, [prefix], 8) == [answer]
