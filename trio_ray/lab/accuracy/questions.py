"""Questions with their true answers: held-out ones about rendered scenes, or the samples of any input."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice

import xxhash

from trio_ray.config import JobConfig
from trio_ray.errors import ConfigError
from trio_ray.lab.scenes import FAMILIES, Split, make_questions, render_scene
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import Sample, Turn
from trio_ray.source.shards import split_file
from trio_ray.store.inputs import StoreOpener, expand_inputs

SCENES_PER_TASK = 16


@dataclass(frozen=True)
class HeldOutQuestion:
    """A question with its true answer.

    Attributes:
        sample: the question, its image and its answer.
        scene: number of its image; questions about one image share it.
        type: what kind of question it is; "all" where nobody says.
        fine: whether it asks for detail that only the tiles show.
    """

    sample: Sample
    scene: int
    type: str = "all"
    fine: bool = False

    @property
    def answer(self) -> str:
        """The one right answer."""
        return self.sample.answer or ""


def held_out_questions(
    count: int, per_scene: int = 4, split: Split = "test", first_seed: int = 0, workers: int = 2, family: str = "shapes"
) -> list[HeldOutQuestion]:
    """`count` questions, `per_scene` about each scene where it has so many.

    Args:
        count: number of questions.
        per_scene: most questions about one image.
        split: scenes of another split share no seed with these, by construction.
        first_seed: the scenes are first_seed, first_seed + 1, ...
        workers: processes that render.
        family: of the scenes.
    """
    questions: list[HeldOutQuestion] = []
    with ProcessPoolExecutor(workers) as pool:
        start = first_seed
        while len(questions) < count:
            scenes = -(-(count - len(questions)) // per_scene)
            tasks = [
                (seed, min(SCENES_PER_TASK, start + scenes - seed), per_scene, split, family)
                for seed in range(start, start + scenes, SCENES_PER_TASK)
            ]
            for found in pool.map(_render, tasks):
                questions += found
            start += scenes
    return questions[:count]


def corpus_questions(config: JobConfig, count: int) -> list[HeldOutQuestion]:
    """The first `count` samples of a job's input that have an answer, in order.

    Raises:
        ConfigError: there is no input, or none of its samples has an answer.
        StoreError: it cannot be read.
    """
    opener = StoreOpener(config.s3)
    shards = (
        shard
        for file in expand_inputs(config.input, config.s3)
        for shard in split_file(file.uri, file.size, file.etag, config.source, opener)
    )
    samples = (
        sample
        for shard in shards
        for sample in read_shard(shard, config.source, opener)
        if isinstance(sample, Sample) and sample.answer is not None
    )
    numbers: dict[str, int] = {}
    questions = []
    for sample in islice(samples, count):
        image = xxhash.xxh3_128_hexdigest(b"".join(sample.images))
        questions.append(HeldOutQuestion(sample, numbers.setdefault(image, len(numbers))))
    if not questions:
        raise ConfigError("input", "has no sample with an answer, which the model's answers could be held against")
    return questions


def _render(task: tuple[int, int, int, Split, str]) -> list[HeldOutQuestion]:
    first, scenes, per_scene, split, family = task
    return [question for seed in range(first, first + scenes) for question in _ask(seed, per_scene, split, family)]


def _ask(seed: int, per_scene: int, split: Split, family: str) -> Iterator[HeldOutQuestion]:
    rendering = render_scene(seed, split, FAMILIES[family])
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
