"""Questions that a scene answers in exactly one way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trio_ray.lab.scenes.layout import Scene, SceneObject, generator

# Tile pixels between the centres of two things before one is called left of, or above, the other.
CLEAR_OFFSET = 20.0
# The same between neighbours in a list from left to right.
LIST_OFFSET = 16.0
# Share of the image's side around its middle where a thing is in no quarter.
MIDDLE_SHARE = 0.08
LIST_LENGTHS = (2, 3)


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its one answer.

    `fine`: answering needs detail that the base view does not show. That holds for the words on tags; letters, though
    small, the bundled model still reads in nine base views of ten (its model card has the numbers).
    """

    text: str
    answer: str
    type: str
    fine: bool


def make_questions(
    scene: Scene, count: int, *, variant: int = 0, weights: Mapping[str, float] | None = None
) -> list[Question]:
    """Up to `count` different questions about a scene; fewer only where the scene holds no more.

    Args:
        variant: another number gives another choice of questions.
        weights: relative frequency of each type in QUESTION_TYPES; by default all alike.
    """
    rng = generator(scene.split, scene.seed, f"questions/{variant}")
    shares = np.array([1.0 if weights is None else weights[name] for name in QUESTION_TYPES])
    names = list(QUESTION_TYPES)
    found: dict[str, Question] = {}
    for number in rng.choice(len(names), size=6 * count, p=shares / shares.sum()):
        if len(found) == count:
            break
        question = QUESTION_TYPES[names[number]](scene, rng)
        if question is not None:
            found.setdefault(question.text, question)
    return list(found.values())


# --- referring to objects ---


def _name(item: SceneObject) -> str:
    return f"{item.color} {item.shape}"


def _named(scene: Scene) -> list[SceneObject]:
    """The objects that colour and shape together single out."""
    names = Counter(_name(item) for item in scene.objects)
    return [item for item in scene.objects if names[_name(item)] == 1]


def _pick(rng: np.random.Generator, items: list[SceneObject]) -> SceneObject:
    return items[int(rng.integers(len(items)))]


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


# --- one function a type; None where the scene has no such question ---


def _ask_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    shapes = Counter(item.shape for item in scene.objects)
    singles = [item for item in scene.objects if shapes[item.shape] == 1]
    if singles and _coin(rng):
        item = _pick(rng, singles)
        return Question(scene.family.phrases.color_of_shape.format(shape=item.shape), item.color, "color", False)
    item = _pick(rng, list(scene.objects))
    return Question(scene.family.phrases.color_of_mark.format(letter=item.letter), item.color, "color", False)


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    colors = Counter(item.color for item in scene.objects)
    singles = [item for item in scene.objects if colors[item.color] == 1]
    if singles and _coin(rng):
        item = _pick(rng, singles)
        return Question(scene.family.phrases.shape_of_color.format(color=item.color), item.shape, "shape", False)
    item = _pick(rng, list(scene.objects))
    return Question(scene.family.phrases.shape_of_mark.format(letter=item.letter), item.shape, "shape", False)


def _ask_letter(scene: Scene, rng: np.random.Generator) -> Question | None:
    named = _named(scene)
    if not named:
        return None
    item = _pick(rng, named)
    return Question(scene.family.phrases.letter.format(name=_name(item)), item.letter, "letter", False)


def _ask_existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Yes and no alike; most of the absent things share their colour and their shape with things that are there."""
    phrase, (yes, no) = scene.family.phrases.existence, scene.family.yes_no
    present = {(item.color, item.shape) for item in scene.objects}
    if _coin(rng):
        name = _name(_pick(rng, list(scene.objects)))
        return Question(phrase.format(article=_article(name), name=name), yes, "existence", False)
    colors, shapes = list(scene.family.colors), list(scene.family.shapes)
    if rng.random() < 0.7:
        colors, shapes = sorted({color for color, _ in present}), sorted({shape for _, shape in present})
    absent = [(color, shape) for color in colors for shape in shapes if (color, shape) not in present]
    if not absent:
        return None
    name = " ".join(absent[int(rng.integers(len(absent)))])
    return Question(phrase.format(article=_article(name), name=name), no, "existence", False)


def _article(name: str) -> str:
    return "an" if name.startswith("orange") else "a"


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question | None:
    family = scene.family
    attribute, values = ("shape", list(family.shapes)) if _coin(rng) else ("color", list(family.colors))
    counts = Counter(getattr(item, attribute) for item in scene.objects)
    # Any present count is as likely as another, so that "1" is not the answer to nearly everything.
    wanted = int(rng.choice(sorted({counts[value] for value in values})))
    value = str(rng.choice([value for value in values if counts[value] == wanted]))
    things = family.plurals[value] if attribute == "shape" else family.color_group.format(color=value)
    return Question(family.phrases.count.format(things=things), family.counts[wanted], "count", False)


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    named = _named(scene)
    if len(named) < 2:
        return None
    axis = int(rng.integers(2))
    word, opposite = scene.family.relations[2 * axis : 2 * axis + 2]
    pairs = []
    for first in named:
        for second in named:
            offset = (second.x - first.x, second.y - first.y)[axis]
            if offset * scene.view.scale >= CLEAR_OFFSET:
                pairs.append((first, second))
    if not pairs:
        return None
    first, second = pairs[int(rng.integers(len(pairs)))]
    holds = _coin(rng)
    if _coin(rng):
        first, second, word = second, first, opposite
    if not holds:
        first, second = second, first
    text = scene.family.phrases.relation.format(first=_name(first), relation=word, second=_name(second))
    return Question(text, scene.family.yes_no[0 if holds else 1], "relation", False)


def _ask_position(scene: Scene, rng: np.random.Generator) -> Question | None:
    top, bottom, left, right = scene.family.sides
    clear = []
    for item in _named(scene):
        across, down = item.x / scene.width - 0.5, item.y / scene.height - 0.5
        if min(abs(across), abs(down)) >= MIDDLE_SHARE:
            clear.append((item, f"{top if down < 0 else bottom} {left if across < 0 else right}"))
    if not clear:
        return None
    item, corner = clear[int(rng.integers(len(clear)))]
    return Question(scene.family.phrases.position.format(name=_name(item)), corner, "position", False)


def _ask_text(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not scene.tags:
        return None
    tag = scene.tags[int(rng.integers(len(scene.tags)))]
    return Question(scene.family.phrases.text.format(tone=tag.tone), tag.word, "text", True)


def _ask_list(scene: Scene, rng: np.random.Generator) -> Question | None:
    """All things of one shape, or of one colour, from left to right."""
    groups: dict[str, list[SceneObject]] = {}
    for item in sorted(scene.objects, key=lambda item: item.x):
        groups.setdefault(scene.family.plurals[item.shape], []).append(item)
        groups.setdefault(scene.family.color_group.format(color=item.color), []).append(item)
    clear = [
        (things, group)
        for things, group in groups.items()
        if len(group) in LIST_LENGTHS
        and all((right.x - left.x) * scene.view.scale >= LIST_OFFSET for left, right in pairwise(group))
    ]
    if not clear:
        return None
    things, group = clear[int(rng.integers(len(clear)))]
    answer = ", ".join(_name(item) for item in group)
    return Question(scene.family.phrases.list.format(things=things), answer, "list", False)


QUESTION_TYPES: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "color": _ask_color,
    "shape": _ask_shape,
    "letter": _ask_letter,
    "existence": _ask_existence,
    "count": _ask_count,
    "relation": _ask_relation,
    "position": _ask_position,
    "text": _ask_text,
    "list": _ask_list,
}
