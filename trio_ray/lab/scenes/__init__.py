"""Rendered scenes whose every question has one known answer: the yardstick of the bundled model.

Pure and seeded: numpy and Pillow alone, no torch, no Ray. `compose` makes a scene, `render` draws it,
`make_questions` asks about it, and `trio_ray.lab.scenes.corpus` writes them as WebDataset shards.
"""

from trio_ray.lab.scenes.families import FAMILIES, Family
from trio_ray.lab.scenes.layout import Scene, SceneObject, Split, Tag, compose
from trio_ray.lab.scenes.questions import QUESTION_TYPES, Question, make_questions
from trio_ray.lab.scenes.render import Rendering, render, render_scene

__all__ = [
    "FAMILIES",
    "QUESTION_TYPES",
    "Family",
    "Question",
    "Rendering",
    "Scene",
    "SceneObject",
    "Split",
    "Tag",
    "compose",
    "make_questions",
    "render",
    "render_scene",
]
