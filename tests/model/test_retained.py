"""Retained input embeddings: a prompt for any engine that takes embeddings, equal to one prune before layer 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kv.prefixes import assert_same
from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.embeds import EmbedsBatch, read_embeds, write_embeds
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.method.visionzip import VisionZip
from trio_ray.model.decode.engine import generate
from trio_ray.model.replica import Replica

SCHEDULE = Schedule(8, (1, 3, 5), retention=0.25)
FIRST_ALONE = Schedule(8, (0,), retention=0.25, weights=(1,))
NEW_TOKENS = 9


def made(replica: Replica, samples: Any, method: Method, **options: Any) -> tuple[PrefixBatch, EmbedsBatch]:
    """Prefixes and retained embeddings of one prefill."""
    prefilled = replica.prefill(samples, method, **options)
    return prefilled.batch, prefilled.embeds


def test_hugging_faces_generate_answers_as_one_prune_before_layer_0(replica: Replica, fresh_model: Any) -> None:
    """What is stored of a prefill that prunes later holds what a prune of the same tokens before layer 0 sees."""
    samples = prepare(replica, samples_of_all_grids(7))
    batch, embeds = made(replica, samples, Method(SCHEDULE, Trio()))
    stored = [read_embeds(bytes(write_embeds(item, "key", "f"))) for item in embeds.split()]
    first = [[prefix.kept[0].tolist()] for prefix in batch.split()]
    pruned = replica.prefill(samples, Method(FIRST_ALONE, Trio()), known=first).prefixes
    ours = generate(replica.decoder, pruned, NEW_TOKENS)
    assert len({tuple(answer) for answer in ours}) > 2
    for item, answer in zip(stored, ours, strict=True):
        assert item.rows.shape[0] < item.length
        output = fresh_model.generate(
            inputs_embeds=item.rows[None],
            attention_mask=torch.ones(1, len(item.rows), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
        )
        assert output[0].tolist() == answer


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_a_prefill_of_them_is_the_prune_before_layer_0(replica: Replica, positions: Any) -> None:
    samples = prepare(replica, samples_of_all_grids(6))
    batch, embeds = made(replica, samples, Method(SCHEDULE, Trio(), positions))
    first = [[prefix.kept[0].tolist()] for prefix in batch.split()]
    pruned = replica.prefill(samples, Method(FIRST_ALONE, Trio(), positions), top_k=40, known=first).prefixes
    ours = replica.prefill_embeds(embeds.split(), top_k=40, positions=positions)
    for one, truth in zip(ours, pruned, strict=True):
        by_id, truth_by_id = one.top_logprobs[one.top_ids.argsort()], truth.top_logprobs[truth.top_ids.argsort()]
        assert torch.allclose(by_id, truth_by_id, atol=1e-4)
    assert generate(replica.decoder, ours, NEW_TOKENS) == generate(replica.decoder, pruned, NEW_TOKENS)


def test_they_are_the_embeddings_of_the_kept_rows_at_their_places(llama: Replica) -> None:
    samples = prepare(llama, samples_of_all_grids(6))
    batch, embeds = made(llama, samples, Method(SCHEDULE, Trio()))
    for sample, prefix, item in zip(samples, batch.split(), embeds.split(), strict=True):
        whole, rows = llama.embed([sample])
        stays = ~rows.is_image
        stays[rows.image_rows[prefix.kept[0].long()]] = True
        assert torch.equal(item.position.long(), stays.nonzero()[:, 0])
        assert torch.allclose(item.rows, whole[stays], atol=1e-5)
        assert torch.equal(item.text, ~rows.is_image[stays])
        assert item.token_ids[item.text].tolist() == [t for t in sample.prompt_ids if t != llama.image_token_id]
        assert bool((item.token_ids[~item.text] == llama.image_token_id).all())
        assert item.length == sample.rows == prefix.length


def test_with_the_prefixes_nothing_changes_and_scope_image_ends_with_the_image(llama: Replica) -> None:
    samples = prepare(llama, samples_of_all_grids(4))
    for scope in ("prompt", "image"):
        batch, embeds = made(llama, samples, Method(SCHEDULE, Trio()), scope=scope)
        plain = llama.prefill(samples, Method(SCHEDULE, Trio()), scope=scope).batch  # type: ignore[arg-type]
        for ours, truth in zip(batch.split(), plain.split(), strict=True):
            assert_same(ours, truth)
        for item, prefix in zip(embeds.split(), plain.split(), strict=True):
            assert item.length == prefix.length
            assert bool(item.text[-1]) is (scope == "prompt")


def test_behind_an_encoder_step_they_are_all_it_leaves(llama: Replica) -> None:
    samples = prepare(llama, samples_of_all_grids(3))
    schedule = Schedule(8, (0, 4), retention=0.3, weights=(3, 1))
    batch, embeds = made(llama, samples, Method(schedule, Trio(), encoder_reducer=VisionZip()))
    for prefix, item in zip(batch.split(), embeds.split(), strict=True):
        assert item.length == prefix.length == len(item.rows)
        assert int((~item.text).sum()) == len(prefix.kept[0])
