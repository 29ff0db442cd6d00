"""Answers a second of one engine without Ray, given all questions in one call, as a measure for an evaluation as a job.

A process of its own, which gives the GPU back when it ends.
"""

from __future__ import annotations

import json
import sys
import time

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import parse_section
from trio_ray.errors import JobFailed
from trio_ray.evaluate.actor import AnswerActor, Chunk
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.evaluate.decode import Decoded
from trio_ray.evaluate.join import join, questions_of, tasks_of

PASSES = 2
"""The first is as cold as a job's replicas are: graphs are recorded, and the memory grows."""


def main() -> int:
    """Read the evaluation's configuration from standard input, write the rate of each pass as JSON."""
    config = parse_section(EvaluateConfig, json.load(sys.stdin))
    cache = PrunedCache(config.cache, config.s3)
    config = config.model_copy(update={"model": cache.model_that_made_it(config.model)})
    found, _ = join(questions_of(cache, config.scorer), cache, config.scorer)
    everything = Chunk(0, tuple(tasks_of(found)))
    actor = AnswerActor(config)
    started = time.perf_counter()
    actor.load()
    load_s = time.perf_counter() - started
    print(json.dumps({"answers_per_s": [_rate(actor, everything) for _ in range(PASSES)], "load_s": load_s}))
    return 0


def _rate(actor: AnswerActor, chunk: Chunk) -> float:
    started = time.perf_counter()
    *_, done = actor.run(chunk)
    seconds = time.perf_counter() - started
    assert isinstance(done, Decoded)
    if done.faults:
        raise JobFailed(f"{len(done.faults)} questions have no answer, one of them: {next(iter(done.faults.values()))}")
    return len(done.answers) / seconds


if __name__ == "__main__":
    sys.exit(main())
