"""What the page about a cache costs: its bytes, and the time that it takes to make.

The cache is made of rendered scenes by the job's own plan, preparation and writer. Only what a model would say is made
up, the kept tokens and the stored bytes among it, since a model would take an hour for 20,000 samples.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import JobConfig, load_config
from trio_ray.errors import JobFailed
from trio_ray.estimate.workload import make_preparer
from trio_ray.lab.scenes.corpus import write_corpus
from trio_ray.method.schedule import Schedule
from trio_ray.model.checkpoint import check_checkpoint
from trio_ray.model.prepare import PreparedSample
from trio_ray.ordered import ordered_map
from trio_ray.precompute.plan import JobPlan, plan_job
from trio_ray.precompute.rows import good_sample, shard_input
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import BadSample, Reason, Shard
from trio_ray.store.catalog_writer import complete_catalog
from trio_ray.store.commit_table import read_commits
from trio_ray.store.inputs import StoreOpener
from trio_ray.store.parts import PartWriter
from trio_ray.study import Study, shown_bytes, table

QUESTIONS = 4
SHARD_SAMPLES = 1000
PART_SAMPLES = 500
MEMBER_BYTES = 2000
"""Of a made-up prefix. The page reads none, and asks the table how long they are."""

CODEC = "int4"
THREADS = 2
DEVICES = 4


def make_cache(folder: Path, samples: int, show: Callable[[str], None], seed: int = 0) -> str:
    """Where the cache is: of at least so many samples, and of some that are broken on purpose. It is made unless it is
    there.
    """
    corpus, cache = folder / "corpus", folder / "cache"
    if not corpus.exists():
        show(f"rendering {samples // QUESTIONS} scenes")
        unfinished = folder / "corpus.unfinished"
        write_corpus(unfinished, samples // QUESTIONS, SHARD_SAMPLES, broken=True, seed=seed)
        unfinished.rename(corpus)
    values: dict[str, Any] = {"input": [str(corpus / "*.tar")], "output": str(cache)}
    values |= {"cache.codec": CODEC, "cache.part_samples": PART_SAMPLES}
    config = load_config(values=values)
    plan = plan_job(config, with_gpu=False)
    chance = np.random.default_rng(seed)
    for number, task in enumerate(plan.tasks):
        show(f"writing shard {number + 1} of {len(plan.tasks)}")
        _write_shard(config, plan, task.shard, chance)
    complete_catalog(plan.store, read_commits(plan.store, THREADS), THREADS)
    return str(cache)


def measure_report(uri: str, page: Path, options: Sequence[str] = ()) -> dict[str, Any]:
    """Run `trio-ray report` on a cache in a process of its own.

    Args:
        uri: of the cache.
        page: where the page goes.
        options: of the command.

    Raises:
        JobFailed: the command failed; says how.
    """
    command = [sys.executable, "-m", "trio_ray.cli", "report", uri, "--out", str(page), *options]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise JobFailed(f"the report of {uri} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    cache = PrunedCache(uri)
    return {
        "cache": uri,
        "samples": len(cache),
        "parts": len(cache.commits),
        "seconds": seconds,
        "bytes": page.stat().st_size,
    }


def study(record: Mapping[str, Any]) -> Study:
    """The record as a table."""
    columns = {
        "samples": lambda page: f"{page['samples']:,}",
        "parts": lambda page: page["parts"],
        "seconds": lambda page: f"{page['seconds']:.1f}",
        "size": lambda page: shown_bytes(page["bytes"]),
    }
    return Study("report", record, table(record["pages"], columns))


def _write_shard(config: JobConfig, plan: JobPlan, shard: Shard, chance: np.random.Generator) -> None:
    schedule = plan.method.schedule
    preparer = make_preparer(config, check_checkpoint(config.model, config.prompt), schedule)
    items = read_shard(shard, config.source, StoreOpener(config.s3))
    outcomes = ordered_map(preparer.prepare, items, THREADS, 8 * THREADS)
    seen: set[str] = set()
    writer = _part(plan, shard, 0)
    for place, outcome in enumerate(outcomes):
        if place and place % PART_SAMPLES == 0:
            writer.commit(last=False)
            writer = _part(plan, shard, place // PART_SAMPLES)
        if isinstance(outcome, BadSample):
            writer.quarantine(outcome.key, outcome.index, outcome.reason, outcome.detail)
        elif outcome.key in seen:
            writer.quarantine(outcome.key, outcome.index, Reason.DUPLICATE_KEY, "an earlier sample has it")
        else:
            seen.add(outcome.key)
            length = MEMBER_BYTES + int(chance.integers(MEMBER_BYTES))
            writer.add(_row(outcome, schedule, chance), chance.bytes(length))
    writer.commit(last=True)


def _part(plan: JobPlan, shard: Shard, number: int) -> PartWriter:
    replica = f"host-{number % DEVICES // 2} GPU {number % 2}"
    return PartWriter(plan.store, plan.dataset, shard_input(shard), number, plan.run_id, replica=replica)


def _row(sample: PreparedSample, schedule: Schedule, chance: np.random.Generator) -> dict[str, Any]:
    """A row with tokens kept by chance, fewer at each prune point, and answers that nobody gave."""
    order = chance.permutation(sample.image_tokens)
    counts = schedule.counts(sample.image_tokens)
    logprobs = np.sort(-chance.exponential(0.25, 8))[::-1]
    return {
        **good_sample(sample, schedule).columns,
        "kept": [np.sort(order[:count]).tolist() for count in counts],
        "segments": list(_segments(sample, schedule, counts)),
        "codec": "int",
        "first_token": 5,
        "first_logprob": float(logprobs[0]),
        "top_ids": list(range(5, 13)),
        "top_logprobs": logprobs.tolist(),
        "target_ids": None,
        "target_logprobs": None,
        "prefill_ms": float(chance.normal(8.6, 0.4)),
        "encode_ms": 3.0,
    }


def _segments(sample: PreparedSample, schedule: Schedule, counts: Sequence[int]) -> Iterator[dict[str, int]]:
    edges = [0, *schedule.prune_points, schedule.layers]
    texts = sample.rows - sample.image_tokens
    for (first, last), held in zip(pairwise(edges), (sample.image_tokens, *counts), strict=True):
        if last > first:
            yield {"first_layer": first, "layers": last - first, "rows": texts + held}
