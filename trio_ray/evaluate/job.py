"""One evaluation: questions joined with a cache, answered by replicas on Ray, scored, written."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cluster.actors import ActorFactory
from trio_ray.cluster.events import ActorDownloads, ActorLost, ActorReady, PoolEvent, Report, WorkFailed
from trio_ray.cluster.pool import ActorPool
from trio_ray.cluster.progress import NoProgress, Phase, Progress
from trio_ray.cluster.session import ray_session
from trio_ray.config import PromptConfig
from trio_ray.errors import ConfigError, JobFailed
from trio_ray.evaluate.actor import AnswerActor, Chunk, chunks_at_once, chunks_of
from trio_ray.evaluate.answer_file import answer_line, unanswered_line
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.evaluate.decode import Decoded
from trio_ray.evaluate.join import Answerable, join, questions_of, tasks_of
from trio_ray.evaluate.question import NoAnswer, Unanswered
from trio_ray.evaluate.question_files import question_source, read_questions
from trio_ray.evaluate.scoring.scorers import scorer_named
from trio_ray.evaluate.scoring.summary import ScoredAnswer, summarise
from trio_ray.evaluate.stored_level import require_prefixes
from trio_ray.model.checkpoint import check_checkpoint
from trio_ray.store.opening import open_output

ANSWERS, UNANSWERED, METRICS = "answers.jsonl", "unanswered.jsonl", "metrics.json"


@dataclass
class _Totals:
    """What the chunks add up to."""

    scored: list[ScoredAnswer] = field(default_factory=list)
    answered: int = 0
    read_bytes: int = 0
    waited_s: float = 0.0
    decoded_s: float = 0.0


Observer = Callable[[PoolEvent[Chunk]], None]
"""Is called with every event of the pool."""


def run_evaluation(
    config: EvaluateConfig, progress: Progress | None = None, observer: Observer = lambda event: None
) -> dict[str, Any]:
    """Answer and score; returns what `metrics.json` says.

    Writes `answers.jsonl` in the questions' order, `unanswered.jsonl` and `metrics.json` below the output.

    Args:
        config: the evaluation.
        progress: shows how many questions are answered.
        observer: is called with every event.

    Raises:
        ConfigError: it cannot be run; nothing was loaded.
        IdentityMismatch: the model is not the one that made the cache.
        NoAnswer: a question has no sound prefix, and `on_missing` is 'error'.
        JobFailed: no replica can be started, or a chunk keeps failing.
        StoreError: the cache or the output failed.
    """
    started = time.monotonic()
    progress = progress or NoProgress()
    progress.begin(Phase("checking"))
    config, cache = _open_cache(config)
    questions = (
        list(read_questions(config, question_source(cache.dataset.identity, config)))
        if config.input
        else questions_of(cache, config.scorer)
    )
    found, unanswered = join(questions, cache, config.scorer)
    if not questions:
        raise ConfigError("input", "holds no question")
    if unanswered and config.on_missing == "error":
        raise NoAnswer(unanswered[0], len(unanswered) - 1)
    output = open_output(config.output, config.s3)
    totals = _Totals()
    session = ray_session(config.replicas.max * config.replicas.cpus) if found else nullcontext()
    with session, output.writer(ANSWERS) as file:
        for line in _answer(config, found, unanswered, totals, progress, observer):
            file.write(line)
    output.put(UNANSWERED, b"".join(map(unanswered_line, unanswered)))
    metrics = _metrics(config, totals, unanswered, time.monotonic() - started)
    output.put(METRICS, json.dumps(metrics, indent=1).encode() + b"\n")
    return metrics


def _open_cache(config: EvaluateConfig) -> tuple[EvaluateConfig, PrunedCache]:
    """The cache, and the configuration with the model and the arithmetic that made it."""
    for name in ("cache", "output"):
        if not getattr(config, name):
            raise ConfigError(name, "is missing; give a folder or s3://bucket/prefix")
    cache = PrunedCache(config.cache, config.s3)
    require_prefixes(cache)
    model = cache.model_that_made_it(config.model)
    checkpoint = check_checkpoint(model, PromptConfig.model_validate(cache.dataset.identity["prompt"]))
    cache.check_model(checkpoint.folder, model.dtype)
    return config.model_copy(update={"model": model}), cache


def _answer(
    config: EvaluateConfig,
    found: list[Answerable],
    unanswered: list[Unanswered],
    totals: _Totals,
    progress: Progress,
    observer: Observer,
) -> Iterator[bytes]:
    """The lines of the answer file, in the questions' order, while the chunks come in as they are done."""
    chunks = chunks_of(tasks_of(found), config.answering, config.replicas.max)
    at_once = chunks_at_once(config.answering)
    factory = ActorFactory(AnswerActor, (config.absolute(),), calls_at_once=at_once)
    pool = ActorPool[Chunk](factory, config.replicas, overlap=at_once)
    done = 0
    progress.begin(Phase("loading the model on replicas"))
    with closing(pool.run(chunks)) as events:
        for chunk, decoded in _in_order(_decoded(events, len(found), progress, observer)):
            faults = [
                Unanswered(found[task].question.question_id, found[task].question.key, fault.outcome, fault.detail)
                for task, fault in sorted(decoded.faults.items())
            ]
            if faults and config.on_missing == "error":
                raise NoAnswer(faults[0], len(faults) - 1)
            unanswered += faults
            yield from _lines(config, found, decoded, totals)
            done += len(chunk.tasks)
            progress.update({"questions": done, "without an answer": len(unanswered)})


def _decoded(
    events: Iterable[PoolEvent[Chunk]], questions: int, progress: Progress, observer: Observer
) -> Iterator[tuple[Chunk, Decoded]]:
    """What came of each chunk, as they are done.

    Raises:
        JobFailed: a chunk was given up.
    """
    answering = False
    for event in events:
        observer(event)
        if isinstance(event, Report) and isinstance(event.content, Decoded):
            yield event.work, event.content
        elif isinstance(event, WorkFailed):
            raise JobFailed(f"the questions {event.work} failed {event.attempts} times; the last: {event.why}")
        elif isinstance(event, ActorDownloads) and not answering:
            progress.update({}, str(event))
        elif isinstance(event, ActorReady):
            if not answering:
                progress.begin(Phase("answering", "questions", questions, rate_of="questions"))
                answering = True
            progress.say(f"replica {event.actor} ready: {event.where}")
        elif isinstance(event, ActorLost):
            progress.say(f"replica {event.actor} lost: {event.why}")


def _in_order(results: Iterable[tuple[Chunk, Decoded]]) -> Iterator[tuple[Chunk, Decoded]]:
    """Chunks by number: one that is done early waits for those before it."""
    early: dict[int, tuple[Chunk, Decoded]] = {}
    following = 0
    for chunk, decoded in results:
        early[chunk.number] = chunk, decoded
        while following in early:
            yield early.pop(following)
            following += 1


def _lines(config: EvaluateConfig, found: list[Answerable], decoded: Decoded, totals: _Totals) -> Iterator[bytes]:
    scorer, model_id = scorer_named(config.scorer), PurePosixPath(config.model.name).name
    totals.read_bytes += decoded.read_bytes
    totals.waited_s += decoded.waited_s
    totals.decoded_s += decoded.decoded_s
    for number, answer in sorted(decoded.answers.items()):
        question = found[number].question
        metadata: dict[str, Any] = {}
        if question.truth is not None:
            score = scorer.score(answer, question.truth)
            totals.scored.append(ScoredAnswer(answer, question.truth, score, question.category, found[number].image))
            metadata = {"score": score}
        totals.answered += 1
        yield answer_line(question, answer, model_id, metadata)


def _metrics(config: EvaluateConfig, totals: _Totals, unanswered: list[Unanswered], seconds: float) -> dict[str, Any]:
    return {
        "cache": config.cache,
        "model_id": PurePosixPath(config.model.name).name,
        "scorer": config.scorer,
        "questions": totals.answered + len(unanswered),
        "answered": totals.answered,
        "unanswered": dict(Counter(str(one.outcome) for one in unanswered)),
        "without_truth": totals.answered - len(totals.scored),
        **summarise(scorer_named(config.scorer), totals.scored),
        "seconds": {"all": seconds, "decoding": totals.decoded_s, "waiting_for_prefixes": totals.waited_s},
        "read_bytes": totals.read_bytes,
    }
