"""The authors' selection, measured for its cost, keeps what ours keeps: else the comparison would compare nothing."""

from __future__ import annotations

import pytest
import torch

from tests.method.layers import FAMILIES, WIDTH, proxy_of, random_model
from tests.method.prompts import KEEP, PROMPTS
from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.lab.prefill.authors import AuthorsTrio
from trio_ray.method.method import Method
from trio_ray.method.rows import PackedRows
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.replica import Replica


@pytest.mark.parametrize("threshold", [0.3, 0.8, 2.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_keeps_the_rows_that_trio_keeps(family: str, threshold: float) -> None:
    model = random_model(family)
    rows = PackedRows.pack(PROMPTS, "cpu")
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows.total, WIDTH, generator=generator) + torch.randn(WIDTH, generator=generator)
    proxy = proxy_of(model, hidden, rows)
    ours, theirs = (kind(threshold=threshold).select(hidden, rows, proxy, KEEP) for kind in (Trio, AuthorsTrio))
    assert theirs.rows.tolist() == ours.rows.tolist()
    images = rows.is_image
    torch.testing.assert_close(theirs.score[images], ours.score[images], rtol=1e-4, atol=1e-9)


def test_a_whole_prefill_ends_with_the_same_tokens_and_logits(replica: Replica) -> None:
    schedule = Schedule(8, (1, 3, 5), retention=0.3)
    prepared = prepare(replica, samples_of_all_grids(12))
    ours, theirs = (
        replica.prefill(prepared, Method(schedule, selector), top_k=8).prefixes for selector in (Trio(), AuthorsTrio())
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert [kept.tolist() for kept in mine.kept] == [kept.tolist() for kept in other.kept]
        torch.testing.assert_close(mine.top_logprobs, other.top_logprobs, rtol=1e-5, atol=1e-5)
