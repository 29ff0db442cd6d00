"""What a scene can hold, and so every word that a question or an answer can need."""

from __future__ import annotations

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "orange": (246, 138, 20),
    "yellow": (246, 224, 48),
    "green": (34, 150, 58),
    "cyan": (62, 208, 222),
    "blue": (36, 72, 206),
    "purple": (124, 42, 166),
    "pink": (250, 142, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
# O, Q, I, W are left out: at 9 pixels they are not told apart from D, G, L or take twice the width.
LETTERS = tuple("ABCDEFGHJKLMNPRSTUVXYZ")
TAG_TONES = ("white", "black")
TAG_WORDS = (
    *("ant", "bee", "box", "bus", "cap", "car", "cat", "cup", "dog", "egg", "fox", "hat"),
    *("ice", "jam", "key", "log", "map", "net", "owl", "pen", "sun", "toy", "van", "zip"),
)
CORNERS = ("top left", "top right", "bottom left", "bottom right")
MAX_OBJECTS = 8

_FUNCTION_WORDS = (
    *("What", "How", "Is", "Where", "List", "is", "are", "there", "the", "a", "an", "of", "on", "from", "to"),
    *(
        "color",
        "shape",
        "shapes",
        "letter",
        "word",
        "tag",
        "marked",
        "many",
        "below",
        "above",
        "left",
        "right",
    ),
    *("top", "bottom", "yes", "no"),
)
_PUNCTUATION = ("?", ".", ",", ":")


def vocabulary() -> list[str]:
    """Every word and sign of the questions and answers, each once, in a fixed order."""
    words = [
        *(
            *_PUNCTUATION,
            *_FUNCTION_WORDS,
            *COLORS,
            *SHAPES,
            *PLURALS.values(),
            *TAG_TONES,
            *TAG_WORDS,
            *LETTERS,
        ),
        *(str(count) for count in range(MAX_OBJECTS + 1)),
    ]
    return list(dict.fromkeys(words))
