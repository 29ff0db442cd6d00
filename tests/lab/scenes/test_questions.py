"""What is promised of questions: one answer each, which the scene alone decides, and no answer that can be guessed."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest

from trio_ray.lab.scenes import QUESTION_TYPES, Question, Scene, compose, make_questions
from trio_ray.lab.scenes.families import FAMILIES, SHAPES, Family

SINGULAR = {plural: shape for shape, plural in SHAPES.plurals.items()}


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    scenes = [compose(seed, "test") for seed in range(500)]
    return [(scene, question) for scene in scenes for question in make_questions(scene, 12)]


def possible_answers(scene: Scene, text: str) -> set[str]:
    """Every answer that a person looking at the scene could defend, read from the question's text alone."""
    objects = scene.objects
    if match := re.fullmatch(r"What color is the shape marked (\w)\?", text):
        return {item.color for item in objects if item.letter == match[1]}
    if match := re.fullmatch(r"What color is the (\w+)\?", text):
        return {item.color for item in objects if item.shape == match[1]}
    if match := re.fullmatch(r"What shape is marked (\w)\?", text):
        return {item.shape for item in objects if item.letter == match[1]}
    if match := re.fullmatch(r"What shape is (\w+)\?", text):
        return {item.shape for item in objects if item.color == match[1]}
    if match := re.fullmatch(r"What letter is on the (\w+) (\w+)\?", text):
        return {item.letter for item in objects if (item.color, item.shape) == match.groups()}
    if match := re.fullmatch(r"Is there an? (\w+) (\w+)\?", text):
        return {"yes" if match.groups() in {(item.color, item.shape) for item in objects} else "no"}
    if match := re.fullmatch(r"How many (\w+) shapes are there\?", text):
        return {str(sum(item.color == match[1] for item in objects))}
    if match := re.fullmatch(r"How many (\w+) are there\?", text):
        return {str(sum(item.shape == SINGULAR[match[1]] for item in objects))}
    if match := re.fullmatch(r"What word is on the (\w+) tag\?", text):
        return {tag.word for tag in scene.tags if tag.tone == match[1]}
    if match := re.fullmatch(r"Where is the (\w+) (\w+)\?", text):
        found = [item for item in objects if (item.color, item.shape) == match.groups()]
        return {
            f"{'top' if item.y < scene.height / 2 else 'bottom'} {'left' if item.x < scene.width / 2 else 'right'}"
            for item in found
        }
    if match := re.fullmatch(r"Is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?", text):
        first = [item for item in objects if (item.color, item.shape) == (match[1], match[2])]
        second = [item for item in objects if (item.color, item.shape) == (match[4], match[5])]
        holds = {
            "left of": lambda a, b: a.x < b.x,
            "right of": lambda a, b: a.x > b.x,
            "above": lambda a, b: a.y < b.y,
            "below": lambda a, b: a.y > b.y,
        }[match[3]]
        return {"yes" if holds(a, b) else "no" for a in first for b in second}
    match = re.fullmatch(r"List the (?:(\w+) shapes|(\w+)) from left to right\.", text)
    assert match, f"a question of no known form: {text}"
    color, plural = match.groups()
    group = [item for item in objects if item.color == color or (plural and item.shape == SINGULAR[plural])]
    return {", ".join(f"{item.color} {item.shape}" for item in sorted(group, key=lambda item: item.x))}


def test_every_question_has_exactly_the_answer_that_the_scene_gives(asked: list[tuple[Scene, Question]]) -> None:
    for scene, question in asked:
        assert possible_answers(scene, question.text) == {question.answer}, (scene.seed, question)


def test_things_told_apart_by_place_are_clearly_apart(asked: list[tuple[Scene, Question]]) -> None:
    """A seventh of a tile at least where left, right, above, below or an order is asked; corners off the middle."""
    for scene, question in asked:
        named = [(f"{item.color} {item.shape}", item) for item in scene.objects]
        things = [item for name, item in named if name in question.text]
        if question.type == "relation":
            axis = "x" if re.search("left|right", question.text) else "y"
            assert abs(getattr(things[0], axis) - getattr(things[1], axis)) * scene.view.scale >= 16
        if question.type == "position":
            assert abs(things[0].x / scene.width - 0.5) >= 0.05
            assert abs(things[0].y / scene.height - 0.5) >= 0.05
        if question.type == "list":
            names = question.answer.split(", ")
            places = sorted(item.x for name, item in named if name in names)
            assert all((right - left) * scene.view.scale >= 16 for left, right in pairwise(places))


def test_every_type_is_asked(asked: list[tuple[Scene, Question]]) -> None:
    counts = Counter(question.type for _, question in asked)
    assert set(counts) == set(QUESTION_TYPES)
    assert min(counts.values()) >= 0.03 * len(asked)


@pytest.mark.parametrize("kind", ["existence", "relation"])
def test_yes_and_no_are_balanced(asked: list[tuple[Scene, Question]], kind: str) -> None:
    answers = Counter(question.answer for _, question in asked if question.type == kind)
    assert set(answers) == {"yes", "no"}
    assert 0.45 <= answers["yes"] / answers.total() <= 0.55


@pytest.mark.parametrize(("kind", "share"), [("color", 0.2), ("shape", 0.25), ("letter", 0.12), ("text", 0.12)])
def test_no_answer_is_common_enough_to_guess(asked: list[tuple[Scene, Question]], kind: str, share: float) -> None:
    answers = Counter(question.answer for _, question in asked if question.type == kind)
    assert max(answers.values()) / answers.total() <= share


def test_questions_are_repeatable_and_distinct() -> None:
    for seed in range(30):
        scene = compose(seed, "validation")
        questions = make_questions(scene, 10)
        assert make_questions(scene, 10) == questions
        assert len({question.text for question in questions}) == len(questions)
        assert make_questions(scene, 10, variant=1) != questions


def test_weights_choose_the_types() -> None:
    weights = dict.fromkeys(QUESTION_TYPES, 0.0) | {"count": 1.0}
    questions = [q for seed in range(5) for q in make_questions(compose(seed, "test"), 4, weights=weights)]
    assert {question.type for question in questions} == {"count"}


def test_only_words_on_tags_are_fine_detail(asked: list[tuple[Scene, Question]]) -> None:
    assert {question.type for _, question in asked if question.fine} == {"text"}
    assert all(question.fine for _, question in asked if question.type == "text")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_vocabulary_covers_every_question_and_answer(family: Family) -> None:
    scenes = [compose(seed, "test", family) for seed in range(300)]
    used = {
        word
        for scene in scenes
        for question in make_questions(scene, 20)
        for word in re.findall(r"\w+|[^\w\s]", f"{question.text} {question.answer}")
    }
    assert used <= set(family.vocabulary())


def test_the_families_share_no_thing_that_a_scene_can_hold() -> None:
    shapes, signs = FAMILIES.values()
    for name in ("colors", "plurals", "letters", "tag_tones", "tag_words", "yes_no", "counts"):
        assert not set(getattr(shapes, name)) & set(getattr(signs, name)), name
