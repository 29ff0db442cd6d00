"""How far arithmetic, attention kernels and batch sizes agree: kept tokens and answers of one model, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.lab.accuracy.accuracy import MAX_NEW_TOKENS, prepared_batches
from trio_ray.lab.accuracy.questions import HeldOutQuestion, held_out_questions
from trio_ray.method.method import Method
from trio_ray.model.loading import model_folder, read_model_config
from trio_ray.model.replica import Replica
from trio_ray.study import Study, table


@dataclass(frozen=True)
class Way:
    """One way to run the model: `dtype`, attention backend, matrix products, and questions a batch."""

    dtype: str
    attention: str
    matmul: str = "dtype"
    batch: int = 64

    def __str__(self) -> str:
        """The name in the table."""
        fp8 = ", fp8 products" if self.matmul == "fp8" else ""
        return f"{self.dtype} {self.attention}{fp8}, batches of {self.batch}"


WAYS = (
    Way("float32", "sdpa"),
    Way("float32", "sdpa", batch=1),
    Way("bfloat16", "sdpa"),
    Way("bfloat16", "sdpa", batch=8),
    Way("bfloat16", "sdpa", batch=1),
    Way("bfloat16", "varlen"),
    Way("bfloat16", "fa3"),
    Way("bfloat16", "flash_attn"),
    Way("bfloat16", "fa3", matmul="fp8"),
)


TITLES = {"kept_early": "kept at the first prune", "kept_late": "kept at the last", "answers": "answers"}


@dataclass(frozen=True)
class Outcome:
    """The result of one way of running the model, for each question.

    Attributes:
        first, last: kept tokens at the first and at the last prune point.
        answers: the generated text.
    """

    first: list[frozenset[int]] = field(default_factory=list)
    last: list[frozenset[int]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


def measure_agreement(
    questions: int,
    model: str = BUNDLED_MODEL,
    ways: Sequence[Way] = WAYS,
    on_way: Callable[[dict[str, object]], None] = lambda record: None,
) -> tuple[list[dict[str, object]], dict[str, str]]:
    """Run all ways over the same held-out questions, pruned by `trio` at 11.1 %.

    Args:
        questions: how many.
        model: that is asked.
        ways: to run it.
        on_way: given each record as soon as it is known.

    Returns:
        A record a way: the share of kept tokens and of answers in common with the first way and with the first of the
        same dtype; right answers. Then the ways that cannot run here, with the reason.

    Raises:
        ConfigError: there is no such model.
    """
    read_model_config(model_folder(ModelConfig(name=model)))  # else every way would count as one that cannot run here
    asked = held_out_questions(questions)
    outcomes: dict[Way, Outcome] = {}
    skipped: dict[str, str] = {}
    records: list[dict[str, object]] = []
    for way in ways:
        try:
            settings = {"dtype": way.dtype, "attention": way.attention, "matmul": way.matmul}
            replica = Replica.load(ModelConfig.model_validate({"name": model, **settings}))
        except ConfigError as error:
            skipped[str(way)] = str(error)
            continue
        outcomes[way] = _run(replica, asked, way.batch)
        records.append(_record(way, outcomes, asked))
        on_way(records[-1])
    return records, skipped


def _record(way: Way, outcomes: Mapping[Way, Outcome], asked: Sequence[HeldOutQuestion]) -> dict[str, object]:
    """The shares that the latest way has in common with the ways before it."""
    outcome, first = outcomes[way], next(iter(outcomes.values()))
    kin = next(other for other in outcomes if other.dtype == way.dtype)
    right = [answer == question.answer for answer, question in zip(outcome.answers, asked, strict=True)]
    return {
        "way": str(way),
        **_against(outcome, first, "first"),
        **_against(outcome, outcomes[kin], "dtype"),
        "right": sum(right) / len(right),
    }


def study(questions: int, records: Sequence[dict[str, object]], skipped: Mapping[str, str]) -> Study:
    """A table with one line for each way; numbers in per cent."""
    columns: dict[str, Callable[[dict[str, object]], object]] = {"": lambda record: record["way"]}
    for whom, others in (("first", str(records[0]["way"])), ("dtype", "its dtype's first")):
        for what, title in TITLES.items():
            columns[f"{title}, as {others}"] = partial(_per_cent, f"{what}_{whom}")
    columns["right answers"] = partial(_per_cent, "right")
    not_run = [f"not run: {way}: {reason}" for way, reason in skipped.items()]
    record = {"questions": questions, "ways": records, "skipped": dict(skipped)}
    return Study("agreement", record, "\n\n".join([table(records, columns), *not_run]))


def _per_cent(name: str, record: dict[str, object]) -> str:
    return f"{100 * float(str(record[name])):.1f}"


def _against(outcome: Outcome, other: Outcome, whom: str) -> dict[str, float]:
    same = [a == b for a, b in zip(outcome.answers, other.answers, strict=True)]
    return {
        f"kept_early_{whom}": _in_common(outcome.first, other.first),
        f"kept_late_{whom}": _in_common(outcome.last, other.last),
        f"answers_{whom}": sum(same) / len(same),
    }


def _in_common(kept: Sequence[frozenset[int]], other: Sequence[frozenset[int]]) -> float:
    """The share of kept tokens that two runs have in common; both keep equally many."""
    return sum(len(a & b) for a, b in zip(kept, other, strict=True)) / sum(map(len, kept))


def _run(replica: Replica, questions: Sequence[HeldOutQuestion], batch: int) -> Outcome:
    method = Method.build(replica.decoder.depth)
    outcome = Outcome()
    for samples in prepared_batches(replica, questions, batch):
        prefixes = replica.prefill(samples, method).prefixes
        outcome.first.extend(frozenset(prefix.kept[0].tolist()) for prefix in prefixes)
        outcome.last.extend(frozenset(prefix.kept[-1].tolist()) for prefix in prefixes)
        outcome.answers.extend(replica.generate(prefixes, MAX_NEW_TOKENS))
    return outcome
