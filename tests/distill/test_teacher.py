"""What is read from a cache and what is computed from its prefixes is the same."""

from __future__ import annotations

import pytest
import torch

from tests.distill.conftest import COUNT, MakeCache
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.distill.examples import Example
from trio_ray.distill.stream import CachedSample
from trio_ray.distill.teacher import PrefixTeacher, StoredTeacher
from trio_ray.model.replica import Replica


@pytest.fixture
def stored(cache: PrunedCache) -> dict[str, Example]:
    samples = [CachedSample(row, cache.embeds(row)) for row in cache.table.to_pylist()]
    return {example.key: example for example in StoredTeacher().examples(samples)}


@pytest.fixture
def computed(make_cache: MakeCache, llama: Replica) -> dict[str, Example]:
    """From caches without targets."""
    embeds, kv = make_cache(cache__level="embeds"), make_cache()
    assert embeds.table.column("answer_ids").null_count == COUNT
    rows = embeds.table.to_pylist()
    samples = [CachedSample(row, embeds.embeds(row), kv.prefix(row["key"], row["shard"])) for row in rows]
    return {example.key: example for example in PrefixTeacher(llama, max_new_tokens=6).examples(samples)}


def test_distributions_computed_from_prefixes_are_those_that_a_cache_stores(
    stored: dict[str, Example], computed: dict[str, Example]
) -> None:
    assert stored.keys() == computed.keys()
    true = [key for key, example in stored.items() if example.targets.true]
    assert true == [key for key, example in computed.items() if example.targets.true]
    assert len(true) == COUNT - 2
    for key in true:
        ours, theirs = computed[key].targets, stored[key].targets
        assert torch.equal(ours.answer, theirs.answer)
        assert torch.equal(ours.ids, theirs.ids)
        torch.testing.assert_close(ours.logprobs, theirs.logprobs, atol=1e-5, rtol=0)


def test_without_a_true_answer_the_teachers_own_is_learned(
    stored: dict[str, Example], computed: dict[str, Example], make_cache: MakeCache, llama: Replica
) -> None:
    """Stored is its first token; from a prefix comes the whole greedy answer, each token the likeliest."""
    unanswered = [key for key, example in stored.items() if not example.targets.true]
    assert len(unanswered) == 2
    kv = make_cache()
    for key in unanswered:
        prefix = kv.prefix(key)
        assert stored[key].targets.answer.tolist() == [prefix.first_token]
        torch.testing.assert_close(stored[key].targets.logprobs[0], prefix.top_logprobs, atol=1e-5, rtol=0)
        own = computed[key].targets
        assert llama.writer.decode(own.answer.tolist()) == llama.generate([prefix], 6)[0]
        assert own.ids[:, 0].tolist() == own.answer.tolist()
        assert len(own.ids) == len(own.logprobs) == len(own.answer) > 1
