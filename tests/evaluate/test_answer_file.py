"""The answer file is one that LLaVA's evaluation scripts accept."""

from __future__ import annotations

import json

from trio_ray.evaluate.answer_file import answer_line, unanswered_line
from trio_ray.evaluate.question import Outcome, Question, Unanswered


def question(question_id: int | str = 7, key: str = "7") -> Question:
    return Question(key, "shard", question_id, "Is there a dog?", None, "random")


def test_the_fields_are_llavas_and_the_id_keeps_its_type() -> None:
    line = answer_line(question(), "Yes, über", "llava-v1.6", {"score": 1.0})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    fields = json.loads(line)
    assert list(fields) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert (fields["question_id"], fields["prompt"], fields["text"]) == (7, "Is there a dog?", "Yes, über")
    assert fields["metadata"] == {"key": "7", "score": 1.0}
    assert json.loads(answer_line(question("7"), "Yes", "m", {}))["question_id"] == "7"


def test_line_breaks_in_an_answer_stay_within_its_line() -> None:
    line = answer_line(question(), "one\ntwo\u2028three", "m", {})
    assert line.count(b"\n") == 1
    assert json.loads(line)["text"] == "one\ntwo\u2028three"


def test_equal_runs_give_equal_ids_and_different_answers_different_ones() -> None:
    ids = [
        json.loads(answer_line(*arguments, {}))["answer_id"]
        for arguments in [
            (question(), "yes", "m"), (question(), "yes", "m"), (question(), "no", "m"), (question(), "yes", "n"),
            (question(8, "8"), "yes", "m"),
        ]
    ]  # fmt: skip
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4


def test_a_question_without_an_answer_says_why() -> None:
    line = json.loads(unanswered_line(Unanswered(7, "7", Outcome.DAMAGED, "bytes differ")))
    assert line == {"question_id": 7, "key": "7", "outcome": "damaged", "detail": "bytes differ"}
