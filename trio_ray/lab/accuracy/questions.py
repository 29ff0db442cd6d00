"""Held-out questions about rendered scenes, as the model's own samples."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from trio_ray.lab.scenes import Split, make_questions, render_scene
from trio_ray.source.sample import Sample, Turn

SCENES_PER_TASK = 16


@dataclass(frozen=True)
class HeldOutQuestion:
    """A question with its true answer. `scene` is the seed of its image; questions about one image share it."""

    sample: Sample
    scene: int
    type: str
    fine: bool

    @property
    def answer(self) -> str:
        """The one right answer."""
        return self.sample.answer or ""


def held_out_questions(
    count: int, per_scene: int = 4, split: Split = "test", first_seed: int = 0, workers: int = 2
) -> list[HeldOutQuestion]:
    """`count` questions, `per_scene` about each scene where it has so many.

    Args:
        count: number of questions.
        per_scene: most questions about one image.
        split: scenes of another split share no seed with these, by construction.
        first_seed: the scenes are first_seed, first_seed + 1, ...
        workers: processes that render.
    """
    questions: list[HeldOutQuestion] = []
    with ProcessPoolExecutor(workers) as pool:
        start = first_seed
        while len(questions) < count:
            scenes = -(-(count - len(questions)) // per_scene)
            tasks = [
                (seed, min(SCENES_PER_TASK, start + scenes - seed), per_scene, split)
                for seed in range(start, start + scenes, SCENES_PER_TASK)
            ]
            for found in pool.map(_render, tasks):
                questions += found
            start += scenes
    return questions[:count]


def _render(task: tuple[int, int, int, Split]) -> list[HeldOutQuestion]:
    first, scenes, per_scene, split = task
    return [question for seed in range(first, first + scenes) for question in _ask(seed, per_scene, split)]


def _ask(seed: int, per_scene: int, split: Split) -> Iterator[HeldOutQuestion]:
    rendering = render_scene(seed, split)
    buffer = io.BytesIO()
    rendering.image.save(buffer, "PNG")
    for number, question in enumerate(make_questions(rendering.scene, per_scene)):
        sample = Sample(
            key=f"{split}-{seed}-{number}",
            index=number,
            images=(buffer.getvalue(),),
            turns=(Turn("user", question.text),),
            answer=question.answer,
        )
        yield HeldOutQuestion(sample, seed, question.type, question.fine)
