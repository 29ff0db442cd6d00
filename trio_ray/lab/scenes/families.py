"""What a family of scenes can hold, how it looks and in which words it is asked about: every choice of one world.

The bundled model knows `SHAPES`. `SIGNS` shares nothing with it but the renderer and the kinds of questions, so a model
trained on it shows whether a choice that was made on the bundled model holds elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_OBJECTS = 8
_PUNCTUATION = ("?", ".", ",", ":")


@dataclass(frozen=True)
class Phrases:
    """The wording of each kind of question; the names in braces are filled in."""

    color_of_shape: str
    color_of_mark: str
    shape_of_color: str
    shape_of_mark: str
    letter: str
    existence: str
    count: str
    relation: str
    position: str
    text: str
    list: str


@dataclass(frozen=True)
class Family:
    """One world of scenes and its language.

    Attributes:
        name: of the family, in commands.
        colors: RGB by name.
        plurals: of each shape.
        letters: one-sign marks, at least MAX_OBJECTS.
        tag_tones: names of the two kinds of plates: colours of plate and ink by name.
        tag_words: what stands on a plate.
        phrases: how questions are asked.
        color_group: how all things of one colour are called.
        yes_no: the answers to yes and no questions.
        counts: the names of 0 to MAX_OBJECTS.
        relations: left of, right of, above, below.
        sides: top, bottom, left, right, as parts of a corner's name.
        function_words: all other words of the phrases.
        grid_shares: shares of the scenes by tile grid, in the order of PINPOINTS.
        cell: smallest and largest side of an object's cell, in tile pixels.
        diameter: smallest and largest diameter of an object, in tile pixels.
        background: lowest and highest middle brightness.
        clustered: whether objects stand in one group, and not all over the scene.
    """

    name: str
    colors: Mapping[str, tuple[int, int, int]]
    plurals: Mapping[str, str]
    letters: tuple[str, ...]
    tag_tones: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]]
    tag_words: tuple[str, ...]
    phrases: Phrases
    color_group: str
    yes_no: tuple[str, str]
    counts: tuple[str, ...]
    relations: tuple[str, str, str, str]
    sides: tuple[str, str, str, str]
    function_words: tuple[str, ...]
    grid_shares: tuple[float, float, float, float, float]
    cell: tuple[float, float]
    diameter: tuple[float, float]
    background: tuple[int, int]
    clustered: bool
    shapes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", tuple(self.plurals))

    def vocabulary(self) -> list[str]:
        """Every word and sign of the questions and answers, each once, in a fixed order."""
        words = [
            *_PUNCTUATION,
            *self.function_words,
            *self.colors,
            *self.plurals,
            *self.plurals.values(),
            *self.tag_tones,
            *self.tag_words,
            *self.letters,
            *self.counts,
        ]
        return list(dict.fromkeys(words))


SHAPES = Family(
    name="shapes",
    colors={
        "red": (214, 32, 38),
        "orange": (246, 138, 20),
        "yellow": (246, 224, 48),
        "green": (34, 150, 58),
        "cyan": (62, 208, 222),
        "blue": (36, 72, 206),
        "purple": (124, 42, 166),
        "pink": (250, 142, 190),
    },
    plurals={
        "circle": "circles",
        "square": "squares",
        "triangle": "triangles",
        "star": "stars",
        "diamond": "diamonds",
        "cross": "crosses",
        "heart": "hearts",
    },
    # O, Q, I, W are left out: at 9 pixels they are not told apart from D, G, L or take twice the width.
    letters=tuple("ABCDEFGHJKLMNPRSTUVXYZ"),
    tag_tones={"white": ((250, 250, 248), (20, 20, 20)), "black": ((12, 12, 12), (245, 245, 245))},
    tag_words=(
        *("ant", "bee", "box", "bus", "cap", "car", "cat", "cup", "dog", "egg", "fox", "hat"),
        *("ice", "jam", "key", "log", "map", "net", "owl", "pen", "sun", "toy", "van", "zip"),
    ),
    phrases=Phrases(
        color_of_shape="What color is the {shape}?",
        color_of_mark="What color is the shape marked {letter}?",
        shape_of_color="What shape is {color}?",
        shape_of_mark="What shape is marked {letter}?",
        letter="What letter is on the {name}?",
        existence="Is there {article} {name}?",
        count="How many {things} are there?",
        relation="Is the {first} {relation} the {second}?",
        position="Where is the {name}?",
        text="What word is on the {tone} tag?",
        list="List the {things} from left to right.",
    ),
    color_group="{color} shapes",
    yes_no=("yes", "no"),
    counts=tuple(str(count) for count in range(MAX_OBJECTS + 1)),
    relations=("left of", "right of", "above", "below"),
    sides=("top", "bottom", "left", "right"),
    function_words=(
        *("What", "How", "Is", "Where", "List", "is", "are", "there", "the", "a", "an", "of", "on", "from", "to"),
        *("color", "shape", "shapes", "letter", "word", "tag", "marked", "many", "below", "above", "left", "right"),
        *("top", "bottom", "yes", "no"),
    ),
    grid_shares=(0.125, 0.125, 0.42, 0.165, 0.165),
    cell=(40.0, 56.0),
    diameter=(27.0, 50.0),
    background=(70, 170),
    clustered=False,
)

SIGNS = Family(
    name="signs",
    colors={
        "brown": (116, 66, 22),
        "lime": (160, 222, 36),
        "navy": (22, 28, 104),
        "teal": (0, 132, 132),
        "violet": (156, 116, 242),
        "gold": (226, 174, 12),
        "crimson": (156, 8, 52),
        "coral": (255, 124, 98),
    },
    plurals={
        "hexagon": "hexagons",
        "arrow": "arrows",
        "house": "houses",
        "bar": "bars",
        "flower": "flowers",
        "drop": "drops",
        "shield": "shields",
    },
    letters=tuple("123456789"),
    tag_tones={"cream": ((250, 236, 190), (90, 40, 0)), "dark": ((40, 44, 60), (190, 240, 200))},
    tag_words=(
        *("ash", "bay", "cow", "den", "elk", "fig", "gum", "hen", "ivy", "jet", "kit", "lid"),
        *("mud", "nut", "oak", "pea", "rug", "sea", "tin", "urn", "web", "yak", "yew", "zoo"),
    ),
    phrases=Phrases(
        color_of_shape="Which paint has the {shape}?",
        color_of_mark="Which paint has number {letter}?",
        shape_of_color="Which sign was painted {color}?",
        shape_of_mark="Which sign carries number {letter}?",
        letter="Tell me the number that the {name} carries.",
        existence="Can you see any {name} here?",
        count="Give the total of {things} in this picture.",
        relation="Does the {first} stand {relation} the {second}?",
        position="In which region do you find the {name}?",
        text="Read out the {tone} plate.",
        list="Going east, name all {things}.",
    ),
    color_group="signs painted {color}",
    yes_no=("true", "false"),
    counts=("none", "one", "two", "three", "four", "five", "six", "seven", "eight"),
    relations=("west of", "east of", "over", "under"),
    sides=("upper", "lower", "west", "east"),
    function_words=(
        *("Which", "Tell", "Can", "Give", "Does", "In", "Read", "Going", "paint", "painted", "has", "was", "sign"),
        *("signs", "number", "carries", "me", "the", "that", "you", "see", "any", "here", "total", "of", "in", "this"),
        *("picture", "stand", "which", "region", "do", "find", "out", "plate", "name", "all", "over", "under"),
        *("upper", "lower", "west", "east", "true", "false"),
    ),
    grid_shares=(0.1, 0.15, 0.44, 0.2, 0.11),
    cell=(37.0, 50.0),
    diameter=(26.0, 44.0),
    background=(164, 211),
    clustered=True,
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in (SHAPES, SIGNS)}
