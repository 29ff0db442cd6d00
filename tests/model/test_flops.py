"""Counted FLOP: equal to what torch's own counter sees, and to the sizes that the design names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from tests.model.corpus import make_sample, prepare, words
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.random import RandomChoice
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.flops import FlopCounter
from trio_ray.model.loading import read_model_config
from trio_ray.model.replica import Replica
from trio_ray.model.shapes import write_model

SCHEDULE = Schedule(8, (1, 3, 5), retention=0.3)


def counted(call: Callable[[], object]) -> int:
    """What torch counts while `call()` runs; of attention it knows the plain kernel alone."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def whole_attention(replica: Replica, lengths: list[int]) -> int:
    """What torch counts on top for causal attention, of which it sees both halves, layer by layer."""
    heads_width = replica.decoder.heads * replica.decoder.head_dim
    return sum(2 * 2 * (rows * rows - rows * (rows + 1) // 2) * heads_width for rows in lengths)


@pytest.mark.parametrize("full_layers", [0, 4, 8])
def test_a_random_selections_prefill_is_counted_as_torch_counts_it(replica: Replica, full_layers: int) -> None:
    """Grouped heads, biases, a prompt of several tiles, layers that run on all rows: every product but those of the
    score. Each case has an image of its own, since an image that was seen last does not pass the tower again.
    """
    (sample,) = prepare(replica, [make_sample([(50, 56)], words(6), 1 + full_layers)])
    counter = FlopCounter(replica.model.config)
    schedule = replace(SCHEDULE, full_layers=full_layers)
    prompt = counter.prompt(sample.rows, sample.image_tokens, schedule)
    tiles = len(sample.images[0].tiles)
    counts = SCHEDULE.counts(sample.image_tokens)
    text = sample.rows - sample.image_tokens
    lengths = [sample.rows] + [
        text + count for count, span in zip(counts, SCHEDULE.spans, strict=True) for _ in range(span)
    ]
    lengths[:full_layers] = [sample.rows] * full_layers
    seen = counted(lambda: replica.prefill([sample], Method(schedule, RandomChoice())).prefixes)
    assert tiles > 1
    assert seen == prompt.total + counter.image(tiles) + whole_attention(replica, lengths)
    assert len(prompt.segments) == 4
    assert prompt.score == 0


class ProductCounter(TorchDispatchMode):
    """Counts matrix products by torch's own formulas; unlike `FlopCounterMode` it bears a gradient taken inside."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@pytest.mark.parametrize("text_words", [1, 9])
def test_the_score_is_counted_no_higher_than_it_is(replica: Replica, text_words: int) -> None:
    """An implementation may do more than the formula needs, never less; what it does beyond it is small."""
    (sample,) = prepare(replica, [make_sample([(50, 56)], words(text_words))])
    seen = []
    for selector in (RandomChoice(), RandomChoice(), Trio(threshold=2.0)):
        # After the first pass all find the image encoded, so that the last two differ in the score alone.
        with ProductCounter() as counter:
            replica.prefill([sample], Method(SCHEDULE, selector))
        seen.append(counter.total)
    score = FlopCounter(replica.model.config).prompt(sample.rows, sample.image_tokens, SCHEDULE, 4).score
    assert 0 < score <= seen[2] - seen[1] < 1.25 * score


def test_unpruned_is_every_layer_over_every_row(llama: Replica) -> None:
    counter = FlopCounter(llama.model.config)
    whole = counter.prompt(300)
    assert whole.segments == (8 * counter.layer(300),)
    assert whole.total == counter.prompt(300, 200, Schedule(8, (1, 3, 5), retention=1.0), supervised=4).total


@pytest.mark.parametrize(("shapes", "tera_flop"), [("vicuna-7b", 42.2), ("mistral-7b", 45.3)])
def test_a_full_grid_at_7b_costs_what_its_weights_say(shapes: str, tera_flop: float, tmp_path: Path) -> None:
    """Five tiles, 2,940 rows: two FLOP a weight and row (6.5 and 7.0 billion weights), 5 % attention, 2 TFLOP tower."""
    counter = FlopCounter(read_model_config(write_model(tmp_path, shapes)))
    schedule = Schedule(32, (1, 10, 15), retention=0.111)
    unpruned = counter.prompt(2940).total + counter.image(5)
    pruned = counter.prompt(2940, 2928, schedule, supervised=4).total + counter.image(5)
    assert unpruned == pytest.approx(tera_flop * 1e12, rel=0.01)
    assert 6.2 < unpruned / pruned < 6.7
