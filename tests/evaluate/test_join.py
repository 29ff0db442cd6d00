"""Each question meets its own prefix, or a reason why it has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpora import QUESTIONS
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.evaluate.join import join, questions_of, tasks_of
from trio_ray.evaluate.question import Outcome, Question, Unanswered
from trio_ray.evaluate.question_files import question_source, read_questions
from trio_ray.evaluate.scoring.scorer import Truth


def question(key: str, number: int, shard: str = "elsewhere", truth: Truth | None = None) -> Question:
    """A question as another file than the cache's own would ask it."""
    return Question(key, shard, key, QUESTIONS[number % 4], truth, None)


def test_the_files_that_made_the_cache_find_all_of_it_and_what_it_refused(made: Path, cache: PrunedCache) -> None:
    """Both files have s0003 and s0004: each question gets the prefix of its own shard."""
    config = EvaluateConfig(input=tuple(str(made / "corpus" / name) for name in ("a.tar", "b.jsonl")))
    read = list(read_questions(config, question_source(cache.dataset.identity, config)))
    found, refused = join(read, cache, "exact")
    assert [(one.question.key, one.question.shard) for one in found] == [
        (task.row["key"], task.row["shard"]) for task in tasks_of(found)
    ]
    assert len(found) == len(cache) == 5 + 6
    assert {one.key: one.outcome for one in refused} == {"s0006": Outcome.QUARANTINED}
    assert "image_empty" in refused[0].detail


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [
        (question("s0000", 0), None),
        (question("s0005", 5), None),
        (question("s0003", 3), Outcome.AMBIGUOUS),
        (question("s9999", 0), Outcome.MISSING),
        (question("s0000", 1), Outcome.OTHER_PROMPT),
    ],
)
def test_another_file_meets_the_cache_by_key_alone_if_the_key_is_the_only_one(
    cache: PrunedCache, asked: Question, outcome: Outcome | None
) -> None:
    found, refused = join([asked], cache, "exact")
    assert [one.outcome for one in refused] == ([] if outcome is None else [outcome])
    assert [task.row["key"] for task in tasks_of(found)] == ([asked.key] if outcome is None else [])
    for one in refused:
        assert cache.uri in one.detail


def test_a_quarantined_sample_does_not_borrow_the_prefix_of_another_shard(cache: PrunedCache) -> None:
    """s0006 is stored from one file and quarantined from the other."""
    shard = next(commit.shard.name for commit in cache.commits if commit.shard.name.startswith("a-"))
    _, (refused,) = join([question("s0006", 6, shard)], cache, "exact")
    assert refused.outcome is Outcome.QUARANTINED
    found, _ = join([question("s0006", 6)], cache, "exact")
    assert len(found) == 1


def test_faults_of_reading_stay_and_the_order_too(cache: PrunedCache) -> None:
    fault = Unanswered("x", "x", Outcome.UNREADABLE, "why")
    found, refused = join([question("s0005", 5), fault, question("s0000", 0)], cache, "exact")
    assert [one.question.key for one in found] == ["s0005", "s0000"]
    assert refused == [fault]


def test_the_caches_own_answer_is_true_where_the_file_has_none(cache: PrunedCache) -> None:
    found, _ = join(
        [question("s0000", 0), question("s0002", 2), question("s0001", 1, truth=Truth(("2",)))], cache, "exact"
    )
    assert [one.question.truth for one in found] == [Truth(("red",)), None, Truth(("2",))]


def test_without_a_file_every_stored_sample_is_asked(cache: PrunedCache) -> None:
    found, refused = join(questions_of(cache, "exact"), cache, "exact")
    assert [one.question.key for one in found] == cache.keys()
    assert refused == []
    assert found[0].question.truth == Truth(("red",))


def test_a_second_question_of_one_key_would_get_the_firsts_prefix_so_it_gets_none(cache: PrunedCache) -> None:
    found, (refused,) = join([question("s0000", 0), question("s0005", 5), question("s0000", 0)], cache, "exact")
    assert len(found) == 2
    assert refused.outcome is Outcome.DUPLICATE
    assert "key_column" in refused.detail
