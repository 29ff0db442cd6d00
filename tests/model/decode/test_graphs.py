"""Decode steps recorded as CUDA graphs."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.config import ModelConfig
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.decode.engine import Engine, answers_in_order, prompt_requests
from trio_ray.model.decode.graphs import StepGraphs
from trio_ray.model.decode.rows import NewRows
from trio_ray.model.replica import Replica

GPU = torch.device("cuda")


def doubled(rows: NewRows) -> torch.Tensor:
    """A step whose logits are twice the slots."""
    return 2 * rows.slot[:, None].float()


@pytest.mark.gpu
def test_a_dropped_graph_that_python_would_collect_while_another_is_recorded_does_no_harm() -> None:
    """Whoever drops an engine drops its graphs, which may be part of a cycle."""
    dropped = StepGraphs(doubled, 9, GPU)
    dropped.record(1)
    earlier = [dropped]
    del dropped

    def step(rows: NewRows) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            cycle: list[object] = [earlier.pop()]
            cycle.append(cycle)
            del cycle
            assert len([[] for _ in range(100_000)]) == 100_000, "so many new objects make Python collect cycles"
        return doubled(rows)

    graphs = StepGraphs(step, 9, GPU)
    assert graphs.run(torch.tensor([3], dtype=torch.int32, device=GPU)).tolist() == [[6.0]]
    assert gc.isenabled()
    assert not earlier


@pytest.mark.gpu
def test_the_memory_of_an_engine_is_free_when_its_last_user_is_gone() -> None:
    """Without waiting for Python to collect cycles: the next engine may need the memory at once."""
    replica = Replica.load(ModelConfig(), device=GPU)
    prepared = prepare(replica, samples_of_all_grids(3))
    prefixes = replica.prefill(prepared, Method(Schedule(16, (1, 5, 8), retention=0.2), Trio())).prefixes
    engine = Engine(replica.decoder)
    answers_in_order(engine, prompt_requests(prefixes, 4, ()))
    pool = weakref.ref(engine.pool)
    gc.disable()
    try:
        del engine
        assert pool() is None
    finally:
        gc.enable()
