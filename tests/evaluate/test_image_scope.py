"""Prefixes that end behind the image: any number of questions share one, whatever they ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpora import QUESTIONS, samples, write_tar
from tests.evaluate.overlapping import answer_overlapping
from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.evaluate.config import AnsweringConfig
from trio_ray.evaluate.decode import Decoded, PrefixDecoder
from trio_ray.evaluate.join import join, questions_of, tasks_of
from trio_ray.evaluate.question import Question
from trio_ray.evaluate.scoring.scorer import Truth
from trio_ray.model.replica import Replica

NEW_TOKENS = 5


@pytest.fixture
def cache(model_folders: dict[str, Path], llama: Replica, tmp_path: Path) -> PrunedCache:
    """A cache of scope image."""
    inputs = write_tar(tmp_path / "a.tar", samples(4))
    config = job_config(model_folders["llama"], inputs, tmp_path / "cache", cache__scope="image")
    run_here(config, llama)
    return PrunedCache(config.output)


def test_many_questions_about_few_images_are_answered_as_each_alone(cache: PrunedCache, llama: Replica) -> None:
    asked = [
        Question(f"s{image:04d}", "elsewhere", number, text, None, None)
        for image in (2, 0)
        for number, text in enumerate(QUESTIONS)
    ]
    found, refused = join(asked, cache, "exact")
    assert refused == []
    tasks = tasks_of(found)
    assert [task.row["key"] for task in tasks] == [question.key for question in asked]
    assert [task.question for task in tasks] == [question.text for question in asked]
    done = PrefixDecoder(cache, llama, AnsweringConfig(max_new_tokens=NEW_TOKENS, sequences=4)).run(tasks)
    alone = [
        llama.ask([cache.prefix(task.row)], [task.row["prompt"]], [task.question], NEW_TOKENS)[0] for task in tasks
    ]
    assert [done.answers[task.number] for task in tasks] == alone
    answers: dict[int, str] = {}
    decoder = PrefixDecoder(cache, llama, AnsweringConfig(max_new_tokens=NEW_TOKENS))
    for result in answer_overlapping(decoder, [tasks[:3], tasks[3:5], tasks[5:]]):  # of one image, and then of two
        assert isinstance(result, Decoded)
        answers |= result.answers
    assert [answers[task.number] for task in tasks] == alone
    assert len(set(alone)) > 2, "the answers must be able to differ"


def test_what_is_true_of_the_samples_own_question_is_not_true_of_another(cache: PrunedCache) -> None:
    asked = [Question("s0000", "elsewhere", number, text, None, None) for number, text in enumerate(QUESTIONS)]
    found, _ = join(asked, cache, "exact")
    assert [one.question.truth for one in found] == [Truth(("red",)), None, None, None]


def test_without_a_file_each_sample_is_asked_its_own_question(cache: PrunedCache) -> None:
    found, refused = join(questions_of(cache, "exact"), cache, "exact")
    assert refused == []
    assert [one.question.text for one in found] == list(QUESTIONS)
    assert [one.question.truth for one in found] == [Truth(("red",)), Truth(("two",)), None, Truth(("yes",))]
