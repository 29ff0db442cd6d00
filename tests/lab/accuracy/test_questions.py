"""Held-out questions: always the same, of their own split, each with its one answer."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

from PIL import Image, ImageChops

from trio_ray.lab.accuracy.questions import HeldOutQuestion, held_out_questions
from trio_ray.lab.scenes import FAMILIES, QUESTION_TYPES, compose, make_questions, render_scene
from trio_ray.lab.scenes.corpus import write_corpus


def test_they_are_the_same_every_time_and_for_any_number_of_workers(questions: list[HeldOutQuestion]) -> None:
    assert held_out_questions(10, per_scene=3, first_seed=40, workers=1) == questions
    assert held_out_questions(7, per_scene=3, first_seed=40) == questions[:7]
    assert len({question.sample.key for question in questions}) == 10


def test_they_are_the_scenes_own_questions_with_the_scenes_own_picture(questions: list[HeldOutQuestion]) -> None:
    for scene in sorted({question.scene for question in questions}):
        ours = [question for question in questions if question.scene == scene]
        theirs = make_questions(compose(scene, "test"), 3)[: len(ours)]
        assert [(q.sample.turns[0].text, q.answer, q.type, q.fine) for q in ours] == [
            (q.text, q.answer, q.type, q.fine) for q in theirs
        ]
        picture = Image.open(io.BytesIO(ours[0].sample.images[0]))
        assert ImageChops.difference(picture, render_scene(scene, "test").image).getbbox() is None
    assert {question.type for question in questions} <= set(QUESTION_TYPES)
    assert [question.scene for question in questions] == sorted(question.scene for question in questions)
    assert questions[0].scene == 40


def test_splits_share_no_picture() -> None:
    pictures = {
        split: {question.sample.images[0] for question in held_out_questions(6, per_scene=1, split=split)}
        for split in ("train", "validation", "test")
    }
    assert all(len(seen) == 6 for seen in pictures.values())
    assert len(set.union(*pictures.values())) == 18


def test_a_corpus_holds_the_same_questions(tmp_path: Path) -> None:
    """What the evaluation asks is what the demo's shards ask, for one seed and split."""
    write_corpus(tmp_path, scenes=2, samples_per_shard=100, seed=5, questions_per_image=3)
    (shard,) = tmp_path.glob("*.tar")
    with tarfile.open(shard) as tar:
        asked = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]  # type: ignore[arg-type]
    ours = held_out_questions(len(asked), per_scene=3, first_seed=5)
    assert [(q.sample.turns[0].text, q.answer) for q in ours] == [(row["question"], row["answer"]) for row in asked]


def test_questions_about_another_family_are_in_its_words() -> None:
    known = set(FAMILIES["signs"].vocabulary())
    for question in held_out_questions(6, family="signs", workers=1):
        assert set(re.findall(r"\w+|[^\w\s]", question.sample.turns[0].text)) <= known
