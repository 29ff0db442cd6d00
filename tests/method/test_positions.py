"""`positions: original`: each kept row stays at its place in the unpruned prompt, in the prefill and while decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from tests.method.reference import greedy_suppression
from tests.model.corpus import make_sample, prepare, samples_of_all_grids, words
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.catalogue import bundled_selectors, make_selector
from trio_ray.method.selectors.trio import AUTHORS_ROWS, Trio
from trio_ray.model.decode.engine import generate
from trio_ray.model.replica import Replica

POINTS = (1, 3, 5)
SCHEDULE = Schedule(8, POINTS, retention=0.3)


def run_layer(language_model: Any, number: int, hidden: Tensor, place: Tensor, cache: DynamicCache | None) -> Tensor:
    """One causal layer of Hugging Face's over (n, d) rows at these positions, behind those that the cache holds."""
    before = 0 if cache is None else cache.get_seq_length(number)
    future = torch.arange(before + len(place))[None] > torch.arange(before, before + len(place))[:, None]
    output = language_model.layers[number](
        hidden[None],
        attention_mask=torch.zeros(future.shape).masked_fill(future, float("-inf"))[None, None],
        position_ids=place[None],
        position_embeddings=language_model.rotary_emb(hidden[None], place[None]),
        past_key_values=cache,
    )
    return (output[0] if isinstance(output, tuple) else output)[0]


def saliency(language_model: Any, head: Any, number: int, hidden: Tensor, place: Tensor) -> Tensor:
    """TRIO's score by autograd through the whole layer, rows at these positions."""
    with torch.enable_grad():
        leaf = hidden.detach().clone().requires_grad_()
        rows = run_layer(language_model, number, leaf, place, None)[list(AUTHORS_ROWS)]
        logits = head(language_model.norm(rows))
        F.cross_entropy(logits, logits.detach().argmax(-1)).backward()
    assert leaf.grad is not None
    return leaf.grad.norm(dim=-1)


@torch.no_grad()
def plain_run(
    replica: Replica, embeds: Tensor, is_image: Tensor, keep: Sequence[int], new_tokens: int
) -> tuple[list[list[int]], DynamicCache, Tensor, list[int]]:
    """Kept tokens by prune point, the prompt's cache, the first logits and the greedy answer, layer by layer."""
    language_model, head = replica.model.model.language_model, replica.model.lm_head  # type: ignore[union-attr]
    cache, kept = DynamicCache(), []
    hidden, place, number = embeds, torch.arange(len(embeds)), torch.where(is_image, is_image.cumsum(0) - 1, -1)
    for layer in range(8):
        if layer in POINTS:
            image = (number >= 0).nonzero()[:, 0]
            score = saliency(language_model, head, layer, hidden, place)[image]
            chosen = greedy_suppression(score.tolist(), hidden[image], keep[len(kept)], 0.8)
            kept.append(number[image[chosen]].tolist())
            stays = (number < 0) | torch.isin(number, number[image[chosen]])
            hidden, place, number = hidden[stays], place[stays], number[stays]
        hidden = run_layer(language_model, layer, hidden, place, cache)
    first = logits = head(language_model.norm(hidden[-1]))
    prompt = DynamicCache([(layer.keys.clone(), layer.values.clone()) for layer in cache.layers])
    answer = [int(logits.argmax())]
    for step in range(new_tokens - 1):
        row = language_model.embed_tokens(torch.tensor(answer[-1:]))
        for layer in range(8):
            row = run_layer(language_model, layer, row, torch.tensor([len(embeds) + step]), cache)
        answer.append(int(head(language_model.norm(row[-1])).argmax()))
    return kept, prompt, first, answer


def test_a_pruned_run_equals_plain_layers_at_the_unpruned_positions(replica: Replica) -> None:
    """Kept tokens, every layer's rotated keys and values, the first logits, and a greedy answer that goes on at
    position `length` in every layer.
    """
    samples = prepare(replica, [make_sample([(40, 50)], words(6)), make_sample([(100, 30), (9, 9)], words(2, 1), 1)])
    prefixes = replica.prefill(samples, Method(SCHEDULE, Trio(), "original"), top_k=40).prefixes
    compact = replica.prefill(samples, Method(SCHEDULE, Trio())).prefixes
    for sample, prefix, other in zip(samples, prefixes, compact, strict=True):
        hidden, rows = replica.embed([sample])
        keep = SCHEDULE.counts(sample.image_tokens)
        kept, cache, logits, answer = plain_run(replica, hidden, rows.is_image, keep, 8)
        assert [numbers.tolist() for numbers in prefix.kept] == kept
        for segment in prefix.segments:
            for layer in range(segment.layers):
                held = cache.layers[segment.first_layer + layer]
                torch.testing.assert_close(segment.keys[layer], held.keys[0].transpose(0, 1), atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(segment.values[layer], held.values[0].transpose(0, 1), atol=1e-4, rtol=1e-4)
        truth = logits.log_softmax(-1)[prefix.top_ids.long()]
        torch.testing.assert_close(prefix.top_logprobs, truth, atol=1e-4, rtol=0)
        assert prefix.length == sample.rows
        assert generate(replica.decoder, [prefix], 8) == [answer]
        assert not torch.allclose(prefix.segments[-1].keys[0, 0], other.segments[-1].keys[0, 0], atol=1e-2)


@pytest.mark.parametrize("name", bundled_selectors())
def test_prefixes_and_answers_do_not_depend_on_the_company(llama: Replica, name: str) -> None:
    method = Method(SCHEDULE, make_selector(name), "original")
    samples = prepare(llama, samples_of_all_grids(10))
    alone = [llama.prefill([sample], method).prefixes[0] for sample in samples]
    order = [7, 2, 5, 0, 9, 3, 6, 1, 4, 8]
    packed = llama.prefill([samples[member] for member in order], method).prefixes
    for member, prefix in zip(order, packed, strict=True):
        assert [kept.tolist() for kept in prefix.kept] == [kept.tolist() for kept in alone[member].kept]
        for ours, other in zip(prefix.segments, alone[member].segments, strict=True):
            assert float((ours.keys - other.keys).abs().max() / other.keys.abs().max()) < 1e-5
    answers = generate(llama.decoder, packed, 10)
    assert answers == [generate(llama.decoder, [alone[member]], 10)[0] for member in order]
    assert len({tuple(answer) for answer in answers}) > 2


@pytest.mark.parametrize("name", bundled_selectors())
def test_without_a_prune_the_positions_make_no_difference(llama: Replica, name: str) -> None:
    samples = prepare(llama, samples_of_all_grids(4))
    whole = Schedule(8, POINTS, retention=1.0)
    compact, original = (
        llama.prefill(samples, Method(whole, make_selector(name), positions)).prefixes
        for positions in ("compact", "original")
    )
    for one, other in zip(compact, original, strict=True):
        assert torch.equal(one.segments[-1].keys, other.segments[-1].keys)
        assert torch.equal(one.top_logprobs, other.top_logprobs)
