"""The packed, pruned prefill: equal to Hugging Face where nothing is dropped, and to plain layers
where something is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.method.reference import reference_greedy, reference_prefill
from tests.model.corpus import hugging_face_inputs, make_sample, prepare, samples_of_all_grids, words
from trio_ray.kv.prefix import Prefix
from trio_ray.method.method import Dropped, Method
from trio_ray.method.proxy import rotate
from trio_ray.method.rows import PackedRows, Positions
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.attention import packed_attention
from trio_ray.model.decode.engine import generate
from trio_ray.model.prefill import pruned_prefill, pruned_prefills
from trio_ray.model.replica import Replica

PRUNED = Schedule(8, (1, 3, 5), retention=0.3)
WHOLE = Schedule(8, (1, 3, 5), retention=1.0)
NEW_TOKENS = 5


def test_retention_1_answers_as_hugging_face_generate_does(replica: Replica, processors: dict[str, Any]) -> None:
    """Token for token, over 54 prompts of different grids, seven of them with two pictures, packed by nines."""
    samples = samples_of_all_grids(54)
    prepared = prepare(replica, samples)
    prefixes = [
        prefix
        for start in range(0, 54, 9)
        for prefix in replica.prefill(prepared[start : start + 9], Method(WHOLE, Trio())).prefixes
    ]
    answers = generate(replica.decoder, prefixes, NEW_TOKENS, replica.stop_tokens)
    assert len({image.grid for sample in prepared for image in sample.images}) == 5
    assert sum(len(sample.images) == 2 for sample in prepared) == 7
    assert len({tuple(answer) for answer in answers}) > 10, "the prompts must not all get one answer"
    for sample, ready, answer in zip(samples, prepared, answers, strict=True):
        inputs = hugging_face_inputs(processors["llama"], sample, ready.prompt)
        output = replica.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)  # type: ignore[operator]
        assert answer == output[0, ready.rows :].tolist()


def kept_of(prefix: Prefix) -> list[list[int]]:
    return [kept.tolist() for kept in prefix.kept]


@pytest.mark.parametrize("order", [range(12), [5, 0, 11, 3, 8, 1, 10, 2, 9, 4, 7, 6]], ids=["in_order", "shuffled"])
@pytest.mark.parametrize("batch", [2, 5, 12])
def test_results_do_not_depend_on_the_batch(replica: Replica, batch: int, order: Sequence[int]) -> None:
    """Alone, packed, in another order: equal kept indices, log-probabilities of the whole vocabulary within 1e-5.

    Relative to the largest: random weights spread them down to -8, and the matrix library sums in another order for
    each number of rows.
    """
    prepared = prepare(replica, samples_of_all_grids(12))
    vocabulary = replica.model.config.text_config.vocab_size  # type: ignore[union-attr]
    alone = [replica.prefill([sample], Method(PRUNED, Trio()), top_k=vocabulary).prefixes[0] for sample in prepared]
    for start in range(0, 12, batch):
        members = list(order[start : start + batch])
        packed = replica.prefill(
            [prepared[member] for member in members], Method(PRUNED, Trio()), top_k=vocabulary
        ).prefixes
        for member, prefix in zip(members, packed, strict=True):
            assert kept_of(prefix) == kept_of(alone[member])
            by_id = prefix.top_logprobs[prefix.top_ids.argsort()]
            truth = alone[member].top_logprobs[alone[member].top_ids.argsort()]
            assert float((by_id - truth).abs().max() / truth.abs().max()) < 1e-5
            for ours, other in zip(prefix.segments, alone[member].segments, strict=True):
                for mine, its in ((ours.keys, other.keys), (ours.values, other.values)):
                    assert float((mine - its).abs().max() / its.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("points", "keep"),
    [((1, 3, 5), (20, 11, 4)), ((4,), (9,)), ((0, 2), (30, 5)), ((1, 7), (6, 0)), ((2, 3), (500, 8))],
    ids=["three_points", "one_point", "before_the_first_layer", "none_left", "more_than_there_are"],
)
def test_pruned_run_equals_plain_layers_with_compact_positions(
    replica: Replica, points: tuple[int, ...], keep: tuple[int, ...]
) -> None:
    """The authors' way, one prompt at a time through Hugging Face's layers, with rows renumbered from 0 after each
    prune:
    the same tokens kept, the same rows in each layer, the same logits of every step.
    """
    prepared = prepare(replica, [make_sample([(40, 50)], words(6)), make_sample([(100, 30), (9, 9)], words(2, 1), 1)])
    schedule = Schedule(8, points, keep=keep)
    prefixes = replica.prefill(prepared, Method(schedule, Trio()), top_k=40).prefixes
    language_model, head = replica.model.model.language_model, replica.model.lm_head  # type: ignore[union-attr]
    for ready, prefix in zip(prepared, prefixes, strict=True):
        embeds, rows = replica.embed([ready])
        reference = reference_prefill(language_model, head, embeds, rows.is_image, points, keep)
        assert kept_of(prefix) == reference.kept
        assert [segment.rows for segment in prefix.segments for _ in range(segment.layers)] == reference.lengths
        for segment in prefix.segments:
            for layer in range(segment.layers):
                values = reference.cache.layers[segment.first_layer + layer].values[0].transpose(0, 1)
                torch.testing.assert_close(segment.values[layer], values, atol=1e-4, rtol=1e-4)
        truth = reference.logits.log_softmax(-1)[prefix.top_ids.long()]
        torch.testing.assert_close(prefix.top_logprobs, truth, atol=1e-4, rtol=0)
        tokens, _ = reference_greedy(language_model, head, reference, 8)
        assert generate(replica.decoder, [prefix], 8) == [tokens]


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("full_layers", [2, 4, 8])
def test_layers_that_run_on_all_rows_store_the_kept_rows_of_the_unpruned_model(
    replica: Replica, full_layers: int, positions: Positions
) -> None:
    """Up to the first layer behind them, whose input has read all tokens too. As many rows are stored as without; keys
    stand at the positions that are stored with them.
    """
    schedule = replace(PRUNED, full_layers=full_layers)
    prepared = prepare(replica, samples_of_all_grids(6))
    known = replica.prefill(prepared, Method(schedule, Trio(), positions), top_k=1000)
    unpruned = replica.prefill(prepared, Method.unpruned(8), top_k=1000).prefixes
    usual = replica.prefill(prepared, Method(PRUNED, Trio(), positions)).prefixes
    differs = False
    for prefix, whole, plain in zip(known.prefixes, unpruned, usual, strict=True):
        assert [segment.rows for segment in prefix.segments] == [segment.rows for segment in plain.segments]
        (all_rows,) = whole.segments
        kept = [torch.arange(all_rows.rows - int(all_rows.text.sum())), *(k.long() for k in prefix.kept)]
        for segment, indices in zip(prefix.segments, kept, strict=True):
            rows = torch.cat([all_rows.text.nonzero()[:, 0], (~all_rows.text).nonzero()[indices, 0]]).sort().values
            for layer in range(segment.layers):
                number = segment.first_layer + layer
                ours, theirs = segment.values[layer], all_rows.values[number, rows]
                if number > full_layers:
                    differs |= not torch.allclose(ours, theirs, atol=1e-3)
                    continue
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
                keys = unturned(replica, segment.keys[layer], segment.position)
                whole_keys = unturned(replica, all_rows.keys[number, rows], all_rows.position[rows])
                torch.testing.assert_close(keys, whole_keys, atol=1e-5, rtol=1e-4)
        if full_layers == 8:
            torch.testing.assert_close(prefix.top_logprobs, whole.top_logprobs, atol=1e-5, rtol=0)
    assert differs == (full_layers < 7)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_methods_that_share_their_layers_store_what_each_stores_alone(replica: Replica, positions: Positions) -> None:
    """Whatever part of the layers runs on all rows, and whether anything is dropped at all."""
    prepared = prepare(replica, samples_of_all_grids(6))
    hidden, rows = replica.embed(prepared)
    schedules = [replace(PRUNED, full_layers=layers) for layers in (0, 4, 8)]
    schedules += [Schedule(8, (0, 2), tokens=9, weights=(3, 1), full_layers=4), Schedule(8, (), keep=())]
    choices = [
        (Method(schedule, Trio(), positions, dropped=dropped), [schedule.counts(s.image_tokens) for s in prepared])
        for schedule in schedules
        for dropped in get_args(Dropped)
    ]
    attention = packed_attention(replica.attention)
    together = pruned_prefills(replica.decoder, hidden, rows, choices, attention)
    for prefill, (method, budgets) in zip(together, choices, strict=True):
        alone = pruned_prefill(replica.decoder, hidden, rows, method, budgets, attention)
        torch.testing.assert_close(prefill.logits, alone.logits, atol=1e-6, rtol=0)
        assert [len(run.keys) for run in prefill.segments] == [len(run.keys) for run in alone.segments]
        for ours, own in zip(prefill.segments, alone.segments, strict=True):
            assert torch.equal(ours.position, own.position)
            torch.testing.assert_close(ours.keys, own.keys, atol=1e-6, rtol=0)
            torch.testing.assert_close(ours.values, own.values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("full_layers", [0, 4, 8])
def test_rows_that_represent_others_let_the_image_weigh_what_it_did(
    replica: Replica, full_layers: int, positions: Positions
) -> None:
    """Keys of image rows are moved along the mean query of the rows behind the image. Where all layers run on all rows,
    nothing else that is stored changes.
    """
    schedule = replace(PRUNED, full_layers=full_layers)
    prepared = prepare(replica, samples_of_all_grids(6))
    seen: list[Tensor] = []
    attention = packed_attention(replica.attention)

    def noting(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, scale: float) -> Tensor:
        grouped = query.unflatten(1, (key.shape[1], -1)).mean(2)
        tails = [grouped[stop - tail : stop].mean(0) for stop, tail in zip(rows.offsets[1:], rows.tails, strict=True)]
        seen.append(scale * torch.stack(tails))
        return attention(query, key, value, rows, scale)

    hidden, rows = replica.embed(prepared)
    budgets = [schedule.counts(sample.image_tokens) for sample in prepared]
    prefills = [
        pruned_prefill(
            replica.decoder, hidden, rows, Method(schedule, Trio(), positions, dropped=dropped), budgets, how
        )
        for dropped, how in (("lost", attention), ("represented", noting))
    ]
    lost, represented = (prefill.prefixes(5).split() for prefill in prefills)
    moved = 0
    for sample, (before, after) in enumerate(zip(lost, represented, strict=True)):
        if full_layers == 8:
            assert torch.equal(before.top_logprobs, after.top_logprobs)
        for segment, plain in zip(after.segments, before.segments, strict=True):
            for layer in range(segment.layers):
                number = segment.first_layer + layer
                if number > max(full_layers, 1):
                    continue  # what enters these layers has read moved keys
                difference = segment.keys[layer] - plain.keys[layer]
                assert torch.equal(segment.values[layer], plain.values[layer])
                assert difference[segment.text].eq(0).all()
                kept = int((~segment.text).sum())
                weight = (difference[~segment.text] * seen[number][sample]).sum(-1)
                wanted = math.log(prepared[sample].image_tokens / kept)
                torch.testing.assert_close(weight, torch.full_like(weight, wanted), atol=1e-3, rtol=0)
                moved += wanted > 0
    assert moved >= 6


def unturned(replica: Replica, keys: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """(rows, kv_heads, D) keys before rotation."""
    cos, sin = replica.decoder.tables(keys, position.long())
    return rotate(keys, cos, -sin)


def test_budgets_are_met_per_sample(llama: Replica) -> None:
    prepared = prepare(llama, samples_of_all_grids(10))
    for sample, prefix in zip(prepared, llama.prefill(prepared, Method(PRUNED, Trio())).prefixes, strict=True):
        counts = PRUNED.counts(sample.image_tokens)
        assert tuple(len(kept) for kept in prefix.kept) == counts
        text = sample.rows - sample.image_tokens
        assert [segment.rows for segment in prefix.segments] == [sample.rows, *(text + count for count in counts)]
        assert prefix.length == sample.rows
        held: set[int] = set(range(sample.image_tokens))
        for kept in kept_of(prefix):
            assert kept == sorted(set(kept))
            assert set(kept) <= held
            held = set(kept)


def test_top_entries_are_the_distributions_best(llama: Replica) -> None:
    (sample,) = prepare(llama, [make_sample([(40, 50)], words(5))])
    (all_of_it,) = llama.prefill([sample], Method(PRUNED, Trio()), top_k=10_000).prefixes
    (best,) = llama.prefill([sample], Method(PRUNED, Trio()), top_k=3).prefixes
    assert all_of_it.top_logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert best.top_ids.tolist() == all_of_it.top_ids[:3].tolist()
    assert best.top_logprobs.tolist() == sorted(best.top_logprobs.tolist(), reverse=True)
    assert best.first_token == best.top_ids[0]


def test_a_schedule_without_prune_points_keeps_one_segment(llama: Replica) -> None:
    (sample,) = prepare(llama, [make_sample([(40, 50)], words(5))])
    (prefix,) = llama.prefill([sample], Method(Schedule(8, (), keep=()), Trio())).prefixes
    assert prefix.kept == ()
    assert [(segment.layers, segment.rows) for segment in prefix.segments] == [(8, sample.rows)]
