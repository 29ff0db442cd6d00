"""The whole benchmark: a model, a workload, the contestants, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from trio_ray.lab.machine import describe_run
from trio_ray.lab.prefill.authors import AuthorsTrio
from trio_ray.lab.prefill.contestant import Contestant
from trio_ray.lab.prefill.peak import matmul_peak
from trio_ray.lab.prefill.pruned import Pruned
from trio_ray.lab.prefill.rounds import Timings, run_rounds
from trio_ray.lab.prefill.settings import BenchSettings
from trio_ray.lab.prefill.stages import pruned_stages, unpruned_stages
from trio_ray.lab.prefill.unpruned import Unpruned, find_batch
from trio_ray.lab.workload import Workload, make_workload
from trio_ray.method.method import Method
from trio_ray.model.flops import FlopCounter
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.precompute.token_budget import BudgetSearch, find_budget


def compare(
    replica: Replica, settings: BenchSettings, on_step: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """Run the benchmark; what comes back is what `bench.json` holds.

    Args:
        replica: the loaded model.
        settings: what to measure.
        on_step: told what begins.
    """
    on_step("images and prompts")
    workload = make_workload(replica, settings.workload, settings.samples, settings.seed)
    budget, search = _token_budget(replica, workload, settings, on_step)
    entries, batch_trials = _entries(replica, workload, settings, budget, on_step)
    timings = run_rounds(
        entries, settings.rounds, replica.device, lambda: matmul_peak(replica.device, replica.dtype), on_step
    )
    stages = {}
    for name, contestant in entries.items():
        on_step(f"stages: {name}")
        stages[name] = _stages(contestant, settings.rounds)
    return {
        **describe_run(replica.device),
        "settings": asdict(settings),
        "dtype": str(replica.dtype).removeprefix("torch."),
        "attention": replica.attention,
        "workload": workload.describe(),
        "tiles_ms": workload.tiles_ms,
        "token_budget": budget,
        "token_budget_search": None if search is None else asdict(search),
        "unpruned_samples_per_s_by_batch": batch_trials,
        "peak_flops": {"rounds": timings.peak, "median": median(timings.peak)},
        "contestants": _results(replica, workload, entries, timings, stages),
    }


def _token_budget(
    replica: Replica, workload: Workload, settings: BenchSettings, on_step: Callable[[str], None]
) -> tuple[int, BudgetSearch | None]:
    if settings.token_budget is not None:
        return settings.token_budget, None
    on_step("search for the packing budget")
    method = _method(replica, "trio", settings.retention, settings.full_depth)
    search = find_budget(replica, workload.samples, method, memory_limit=settings.memory_limit)
    return search.best.token_budget, search


def _entries(
    replica: Replica, workload: Workload, settings: BenchSettings, budget: int, on_step: Callable[[str], None]
) -> tuple[dict[str, Contestant], dict[int, float]]:
    """The contestants by name, and what each batch size of the unpruned one reached."""
    entries: dict[str, Contestant] = {}
    trials: dict[int, float] = {}
    for name in settings.contestants:
        if name == "unpruned":
            on_step("search for the best unpruned batch")
            trials = find_batch(replica, workload.samples)
            entries[name] = Unpruned(replica, workload.samples, max(trials, key=lambda size: trials[size]))
        else:
            entries[name] = pruned_prefill(
                replica, workload.samples, budget, name, settings.retention, settings.full_depth
            )
    return entries, trials


def pruned_prefill(
    replica: Replica,
    samples: Sequence[PreparedSample],
    token_budget: int,
    name: str,
    retention: float,
    full_depth: float = 0.0,
) -> Pruned:
    """Our prefill with a contestant's method, `token_budget` prompt rows a batch."""
    return Pruned(replica, samples, token_budget, _method(replica, name, retention, full_depth))


def _method(replica: Replica, name: str, retention: float, full_depth: float) -> Method:
    """A contestant's method; `authors` differs from `trio` in how it finds the same tokens."""
    if name == "authors":
        return replace(_method(replica, "trio", retention, full_depth), selector=AuthorsTrio())
    return Method.build(replica.decoder.depth, retention=retention, selector=name, full_depth=full_depth)


def _stages(contestant: Contestant, pass_number: int) -> dict[str, float]:
    if isinstance(contestant, Unpruned):
        return unpruned_stages(contestant, pass_number)
    assert isinstance(contestant, Pruned)
    return pruned_stages(contestant, pass_number)


def _results(
    replica: Replica,
    workload: Workload,
    entries: dict[str, Contestant],
    timings: Timings,
    stages: dict[str, dict[str, float]],
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, contestant in entries.items():
        seconds = timings.seconds[name]
        flop = counted_flop(FlopCounter(replica.model.config), workload.samples, contestant)
        results[name] = {
            "seconds": seconds,
            "samples_per_s": len(workload.samples) / median(seconds),
            "images_per_s": workload.images / median(seconds),
            "times_unpruned": _ratio(timings, "unpruned", name),
            "over_random": _over_random(entries, timings, name),
            "flop_per_sample": flop / len(workload.samples),
            "share_of_peak": median(
                flop / duration / peak for duration, peak in zip(seconds, timings.peak, strict=True)
            ),
            "peak_bytes": timings.peak_bytes[name],
            "stages_ms": stages[name],
        }
    return results


def counted_flop(counter: FlopCounter, samples: Sequence[PreparedSample], contestant: Contestant) -> int:
    """FLOP that a pass needs. Plain prefill encodes an image for each question; the authors' selection counts as ours,
    since it finds the same.
    """
    if isinstance(contestant, Pruned):
        supervised, schedule = contestant.method.selector.proxy_rows, contestant.method.schedule
        tiles = {image.hash: len(image.tiles) for sample in samples for image in sample.images}
        prompts = (counter.prompt(sample.rows, sample.image_tokens, schedule, supervised) for sample in samples)
        return sum(counter.image(count) for count in tiles.values()) + sum(prompt.total for prompt in prompts)
    images = (counter.image(len(image.tiles)) for sample in samples for image in sample.images)
    return sum(images) + sum(counter.prompt(sample.rows).total for sample in samples)


def _ratio(timings: Timings, other: str, name: str) -> float | None:
    """Median over rounds of how many times as long `other` took."""
    if other not in timings.seconds:
        return None
    return median(a / b for a, b in zip(timings.seconds[other], timings.seconds[name], strict=True))


def _over_random(entries: dict[str, Contestant], timings: Timings, name: str) -> float | None:
    """What the selection costs: time over that of random selection on the same schedule, less 1."""
    this, chance = entries[name], entries.get("random")
    if name == "random" or not (isinstance(this, Pruned) and isinstance(chance, Pruned)):
        return None
    if this.method.schedule != chance.method.schedule:
        return None
    return median(a / b for a, b in zip(timings.seconds[name], timings.seconds["random"], strict=True)) - 1
