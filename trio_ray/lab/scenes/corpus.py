"""Scenes with their questions as WebDataset shards, some samples broken on purpose if asked for.

Every question is a sample of its own; the questions of one image follow each other and repeat its bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import webdataset
from PIL import Image

from trio_ray.lab.scenes.defects import Defect, RawSample, defective_samples, truncate_last_sample
from trio_ray.lab.scenes.layout import Split
from trio_ray.lab.scenes.questions import Question, make_questions
from trio_ray.lab.scenes.render import render_scene

SHARD_NAME = "scenes-{:06d}.tar"
TRUNCATED_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class CorpusManifest:
    """What `write_corpus` wrote.

    `keys` are those of the readable samples, defects that a reader must accept among them; `defects` all that is
    unusual or broken, with what a reader should say of it.
    """

    shards: tuple[Path, ...]
    keys: tuple[str, ...]
    defects: tuple[Defect, ...]


def write_corpus(
    folder: str | Path,
    scenes: int,
    samples_per_shard: int,
    *,
    broken: bool = False,
    seed: int = 0,
    split: Split = "test",
    questions_per_image: int = 4,
) -> CorpusManifest:
    """Write scenes `seed` .. `seed + scenes - 1` of a split into `folder`, which is created.

    A sample is `<scene>-<question>.jpg` or `.png`, and `.json` with question, answer, type, fine, seed and split. The
    same arguments give the same bytes. With `broken`, the first shard also holds one sample of every kind in
    `defects.py`, and one more shard ends in the middle of its last sample.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    good = chain.from_iterable(
        _scene_samples(number, split, questions_per_image) for number in range(seed, seed + scenes)
    )
    shards: list[Path] = []
    keys: list[str] = []
    defects: list[Defect] = []
    while samples := list(islice(good, samples_per_shard)):
        keys += [sample.key for sample in samples]
        if broken and not shards:
            odd = list(defective_samples(samples))
            defects += [defect for defect, _ in odd]
            keys += [defect.key for defect, _ in odd if defect.reason is None]
            samples = _interleave(samples, [sample for _, sample in odd])
        shards.append(_write_shard(folder, len(shards), samples))
    if broken:
        samples = list(_scene_samples(seed + scenes, split, TRUNCATED_SAMPLES))
        shard = _write_shard(folder, len(shards), samples)
        defects.append(truncate_last_sample(shard, samples[-1].key))
        shards.append(shard)
        keys += [sample.key for sample in samples[:-1]]
    return CorpusManifest(tuple(shards), tuple(keys), tuple(defects))


def _scene_samples(number: int, split: Split, questions: int) -> Iterator[RawSample]:
    """One scene's samples; every second scene is a JPEG."""
    rendering = render_scene(number, split)
    suffix, content = (
        ("png", encode(rendering.image, "PNG")) if number % 2 else ("jpg", encode(rendering.image, "JPEG"))
    )
    for index, question in enumerate(make_questions(rendering.scene, questions)):
        text = _question_json(question, number, split)
        yield RawSample(f"{number:06d}-{index}", {suffix: content, "json": text})


def encode(image: Image.Image, format: str) -> bytes:
    """Image file bytes; JPEG finely enough that small text survives."""
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 95, "subsampling": 0} if format == "JPEG" else {}))
    return buffer.getvalue()


def _question_json(question: Question, number: int, split: Split) -> bytes:
    fields = {
        "question": question.text,
        "answer": question.answer,
        "type": question.type,
        "fine": question.fine,
        "seed": number,
        "split": split,
    }
    return json.dumps(fields).encode()


def _interleave(samples: list[RawSample], odd: list[RawSample]) -> list[RawSample]:
    """The odd samples spread between the others, none before the first."""
    mixed = list(samples)
    for index, sample in enumerate(odd):
        mixed.insert(1 + index + len(samples) * (index + 1) // (len(odd) + 1), sample)
    return mixed


def _write_shard(folder: Path, number: int, samples: Iterable[RawSample]) -> Path:
    path = folder / SHARD_NAME.format(number)
    with webdataset.TarWriter(str(path), encoder=False, mtime=0) as writer:
        for sample in samples:
            writer.write({"__key__": sample.key, **sample.members})
    return path
