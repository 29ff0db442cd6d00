"""Questions that a scene answers in exactly one way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trio_ray.lab.scenes.layout import Scene, SceneObject, generator
from trio_ray.lab.scenes.words import COLORS, PLURALS, SHAPES

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
        return Question(f"What color is the {item.shape}?", item.color, "color", False)
    item = _pick(rng, list(scene.objects))
    return Question(f"What color is the shape marked {item.letter}?", item.color, "color", False)


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    colors = Counter(item.color for item in scene.objects)
    singles = [item for item in scene.objects if colors[item.color] == 1]
    if singles and _coin(rng):
        item = _pick(rng, singles)
        return Question(f"What shape is {item.color}?", item.shape, "shape", False)
    item = _pick(rng, list(scene.objects))
    return Question(f"What shape is marked {item.letter}?", item.shape, "shape", False)


def _ask_letter(scene: Scene, rng: np.random.Generator) -> Question | None:
    named = _named(scene)
    if not named:
        return None
    item = _pick(rng, named)
    return Question(f"What letter is on the {_name(item)}?", item.letter, "letter", False)


def _ask_existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Yes and no alike; most of the absent things share their colour and their shape with things that are there."""
    present = {(item.color, item.shape) for item in scene.objects}
    if _coin(rng):
        name = _name(_pick(rng, list(scene.objects)))
        return Question(f"Is there {_article(name)} {name}?", "yes", "existence", False)
    colors, shapes = list(COLORS), list(SHAPES)
    if rng.random() < 0.7:
        colors, shapes = sorted({color for color, _ in present}), sorted({shape for _, shape in present})
    absent = [(color, shape) for color in colors for shape in shapes if (color, shape) not in present]
    if not absent:
        return None
    name = " ".join(absent[int(rng.integers(len(absent)))])
    return Question(f"Is there {_article(name)} {name}?", "no", "existence", False)


def _article(name: str) -> str:
    return "an" if name.startswith("orange") else "a"


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question | None:
    attribute, values = ("shape", list(SHAPES)) if _coin(rng) else ("color", list(COLORS))
    counts = Counter(getattr(item, attribute) for item in scene.objects)
    # Any present count is as likely as another, so that "1" is not the answer to nearly everything.
    wanted = int(rng.choice(sorted({counts[value] for value in values})))
    value = str(rng.choice([value for value in values if counts[value] == wanted]))
    things = PLURALS[value] if attribute == "shape" else f"{value} shapes"
    return Question(f"How many {things} are there?", str(wanted), "count", False)


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    named = _named(scene)
    if len(named) < 2:
        return None
    word, opposite, axis = [("left of", "right of", 0), ("above", "below", 1)][int(rng.integers(2))]
    pairs = []
    for first in named:
        for second in named:
            offset = (second.x - first.x, second.y - first.y)[axis]
            if offset * scene.view.scale >= CLEAR_OFFSET:
                pairs.append((first, second))
    if not pairs:
        return None
    first, second = pairs[int(rng.integers(len(pairs)))]
    answer = "yes" if _coin(rng) else "no"
    if _coin(rng):
        first, second, word = second, first, opposite
    if answer == "no":
        first, second = second, first
    return Question(f"Is the {_name(first)} {word} the {_name(second)}?", answer, "relation", False)


def _ask_position(scene: Scene, rng: np.random.Generator) -> Question | None:
    clear = []
    for item in _named(scene):
        across, down = item.x / scene.width - 0.5, item.y / scene.height - 0.5
        if min(abs(across), abs(down)) >= MIDDLE_SHARE:
            clear.append((item, f"{'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"))
    if not clear:
        return None
    item, corner = clear[int(rng.integers(len(clear)))]
    return Question(f"Where is the {_name(item)}?", corner, "position", False)


def _ask_text(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not scene.tags:
        return None
    tag = scene.tags[int(rng.integers(len(scene.tags)))]
    return Question(f"What word is on the {tag.tone} tag?", tag.word, "text", True)


def _ask_list(scene: Scene, rng: np.random.Generator) -> Question | None:
    """All things of one shape, or of one colour, from left to right."""
    groups: dict[str, list[SceneObject]] = {}
    for item in sorted(scene.objects, key=lambda item: item.x):
        groups.setdefault(PLURALS[item.shape], []).append(item)
        groups.setdefault(f"{item.color} shapes", []).append(item)
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
    return Question(f"List the {things} from left to right.", answer, "list", False)


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
