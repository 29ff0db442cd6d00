"""The yardstick does the whole work: plain Hugging Face logits of every sample, whatever batch it lies in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.lab.prefill.unpruned import Unpruned, find_batch
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica

WHOLE = Schedule(8, (), keep=())


@pytest.fixture
def samples(llama: Replica) -> list[PreparedSample]:
    """Prompts of many lengths and grids, one with two pictures."""
    return prepare(llama, samples_of_all_grids(9))


def test_logits_of_a_ragged_batch_are_those_of_an_unpruned_prefill(
    llama: Replica, samples: list[PreparedSample]
) -> None:
    ordered = sorted(samples, key=lambda sample: sample.rows)
    assert len({sample.rows for sample in samples}) > 5
    whole = llama.prefill(ordered, Method(WHOLE, Trio()), top_k=10_000).prefixes
    contestant = Unpruned(llama, samples, 4)
    batches = contestant.batches(0)
    assert [len(batch.ids) for batch in batches] == [4, 4, 1]
    logits = torch.cat([contestant.run(batch) for batch in batches])
    for row, prefix in zip(logits, whole, strict=True):
        truth = prefix.top_logprobs[prefix.top_ids.argsort()]
        torch.testing.assert_close(row.float().log_softmax(-1), truth, rtol=1e-4, atol=1e-4)


def test_batch_sizes_double_until_nothing_is_gained(llama: Replica, samples: list[PreparedSample]) -> None:
    rates = find_batch(llama, samples)
    sizes = list(rates)
    assert sizes == [1 << step for step in range(len(sizes))]
    assert all(rate > 0 for rate in rates.values())
    # All but the last were worth going on from, which is where the search found nothing more to gain.
    assert all(rates[size] > max(rates[other] for other in sizes[:at]) for at, size in enumerate(sizes[1:-1], 1))


def test_running_out_of_memory_ends_the_search(llama: Replica, samples: list[PreparedSample]) -> None:
    def refuse(module: object, inputs: object, arguments: dict[str, Any]) -> None:
        if len(arguments["input_ids"]) > 2:
            raise torch.OutOfMemoryError("as CUDA says it")

    hook = llama.model.register_forward_pre_hook(refuse, with_kwargs=True)  # type: ignore[arg-type]
    try:
        assert max(find_batch(llama, samples)) <= 2
    finally:
        hook.remove()
