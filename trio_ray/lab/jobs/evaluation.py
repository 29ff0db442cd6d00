"""Evaluations as jobs, real Ray and a real cache, on 1, 2, 4 ... replicas of one machine, beside the bare engine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from trio_ray.cluster.events import ActorLost, ActorReady, PoolEvent, Report
from trio_ray.config import JobConfig
from trio_ray.errors import JobFailed
from trio_ray.evaluate.actor import Chunk
from trio_ray.evaluate.config import AnsweringConfig, EvaluateConfig
from trio_ray.evaluate.decode import Decoded
from trio_ray.evaluate.job import run_evaluation
from trio_ray.lab.jobs.corpus import write_corpus
from trio_ray.lab.jobs.own_process import in_own_process
from trio_ray.model.decoder import default_device
from trio_ray.precompute.job import run_job
from trio_ray.study import Columns, Study, shown, table

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class EvaluationBench:
    """What to run.

    Attributes:
        config: the job that makes the cache, without input; a cache that is there and complete is used as it is.
        answering: how its questions are answered.
        workload: `pope` or `web`.
        shards: of the cache.
        per_shard: samples, each with a question.
        replicas: of each evaluation, which answers all questions.
        rounds: turns of the bare engine and the evaluations.
    """

    config: JobConfig
    answering: AnsweringConfig
    workload: str
    shards: int
    per_shard: int
    replicas: tuple[int, ...]
    rounds: int

    def evaluation(self, replicas: int, output: Path) -> EvaluateConfig:
        """One that answers all questions."""
        config = self.config
        return EvaluateConfig(
            cache=config.output,
            output=str(output),
            model=config.model,
            answering=self.answering,
            replicas=config.replicas.model_copy(update={"min": replicas, "max": replicas}),
            s3=config.s3,
        ).absolute()


@dataclass
class EvaluationWatch:
    """Remembers the events of an evaluation. Times are seconds since it was made."""

    events: list[tuple[float, PoolEvent[Chunk]]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def note(self, event: PoolEvent[Chunk]) -> None:
        """Remember an event. An `Observer`."""
        self.events.append((time.monotonic() - self._began, event))

    def summary(self, replicas: int) -> dict[str, Any]:
        """What an evaluation on `replicas` replicas reached, each of them from when it had loaded its model.

        The time of a replica ends with the job's last answer, so that the end, where some have nothing left to do,
        counts; loading does not.

        Raises:
            JobFailed: a replica was lost, so that others were at work.
        """
        lost = [event.why for _, event in self.events if isinstance(event, ActorLost)]
        if lost:
            raise JobFailed(f"a replica was lost: {lost[0]}")
        ready = [at for at, event in self.events if isinstance(event, ActorReady)]
        done = [
            (at, event.content)
            for at, event in self.events
            if isinstance(event, Report) and isinstance(event.content, Decoded)
        ]
        answers, end = sum(len(decoded.answers) for _, decoded in done), max(at for at, _ in done)
        return {
            "replicas": replicas,
            "answers": answers,
            "answers_per_s": replicas * answers / sum(end - at for at in ready),
            "all_ready_s": max(ready),
            "last_answer_s": end,
        }


def run_bench(
    bench: EvaluationBench, folder: Path, on_step: OnStep, on_record: Callable[[Mapping[str, Any]], object]
) -> dict[str, Any]:
    """Run it; the record is what `evaluation.json` holds.

    Args:
        bench: what to run.
        folder: where the corpus and the answers are written.
        on_step: told what begins, and in JSON what came of it.
        on_record: given all that is known so far, whenever it has grown.

    Raises:
        JobFailed: the cache could not be made, or an evaluation or the bare engine failed.
    """
    on_step("precompute the cache")
    _make_cache(bench, folder)
    rounds: list[dict[str, Any]] = []
    record: dict[str, Any] = {"workload": bench.workload, "rounds": rounds}

    def note(found: Mapping[str, Any]) -> None:
        on_step(json.dumps(found))
        on_record(record)

    order = bench.evaluation(1, folder / "answers").model_dump(mode="json")
    run_bare = partial(in_own_process, "trio_ray.lab.jobs.bare_engine", "bare engine", order)
    if default_device().type == "cuda":
        on_step("the bare engine, for the compiled kernels that it leaves on the disk")
        run_bare()
    for number in range(bench.rounds):
        on_step(f"round {number + 1} of {bench.rounds}: the bare engine")
        bare = run_bare()
        rounds.append({"bare": bare, "runs": []})
        note(bare)
        for replicas in bench.replicas:
            on_step(f"round {number + 1} of {bench.rounds}: an evaluation on {replicas} replicas")
            watch = EvaluationWatch()
            metrics = run_evaluation(bench.evaluation(replicas, folder / "answers"), observer=watch.note)
            rounds[-1]["runs"].append({**watch.summary(replicas), "whole_s": metrics["seconds"]["all"]})
            note(rounds[-1]["runs"][-1])
    return record


def _make_cache(bench: EvaluationBench, folder: Path) -> None:
    inputs = tuple(write_corpus(folder / "corpus", bench.workload, bench.shards, bench.per_shard))
    most = max(bench.replicas)
    replicas = bench.config.replicas.model_copy(update={"max": most})
    summary = run_job(bench.config.model_copy(update={"input": inputs, "replicas": replicas}))
    if not summary.ok:
        raise JobFailed(str(summary))


def study(record: Mapping[str, Any]) -> Study:
    """The machine, the bare engine, and a line for each number of replicas: medians over the rounds."""
    machine, rounds = record["machine"], record["rounds"]
    complete = [one for one in rounds if len(one["runs"]) == len(rounds[0]["runs"])]
    cold, warm = (median(one["bare"]["answers_per_s"][number] for one in rounds) for number in (0, -1))
    load = median(one["bare"]["load_s"] for one in rounds)
    lines = [
        f"{record['shapes']}, workload {record['workload']}, answers of at most "
        f"{record['answering']['max_new_tokens']} tokens, on {machine['device']} with {machine['cpus']} CPUs, "
        f"{record['date'][:10]}; {len(complete)} rounds.",
        f"Bare engine: {cold:.1f} answers/s in its first pass, {warm:.1f} in a later one; its model loads in "
        f"{load:.1f} s.",
        "",
        table([_medians(complete, place) for place in range(len(complete[0]["runs"]))], _COLUMNS),
        "",
        "A replica's time begins when its model is loaded, and ends with the job's last answer.",
    ]
    return Study("evaluation", record, "\n".join(lines))


def _medians(rounds: Sequence[Mapping[str, Any]], place: int) -> dict[str, float]:
    """Of one number of replicas; the shares are of the bare engine in the same round."""
    runs = [one["runs"][place] for one in rounds]
    found = {name: median(run[name] for run in runs) for name in runs[0]}
    for name, number in (("of_first", 0), ("of_later", -1)):
        found[name] = median(
            run["answers_per_s"] / run["replicas"] / one["bare"]["answers_per_s"][number]
            for run, one in zip(runs, rounds, strict=True)
        )
    return found


_COLUMNS: Columns[Mapping[str, float]] = {
    "replicas": lambda run: run["replicas"],
    "answers": lambda run: run["answers"],
    "answers/s": lambda run: shown(run["answers_per_s"], ".1f"),
    "of the bare engines' first pass": lambda run: shown(run["of_first"], ".1f", " %", 100),
    "of a later pass": lambda run: shown(run["of_later"], ".1f", " %", 100),
    "all loaded, s": lambda run: shown(run["all_ready_s"], ".1f"),
    "last answer, s": lambda run: shown(run["last_answer_s"], ".1f"),
    "whole evaluation, s": lambda run: shown(run["whole_s"], ".1f"),
}
