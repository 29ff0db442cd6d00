"""A corpus for whole jobs: shards of one set of images, as many as a machine with many GPUs needs."""

from __future__ import annotations

import os
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np

from trio_ray.lab.image_sizes import draw_size
from trio_ray.lab.workload import QUESTIONS_PER_IMAGE, make_question, synthesise

IMAGES = 64
"""Different images in a shard. They are repeated, and each copy is decoded anew."""


def write_corpus(folder: Path, workload: str, shards: int, per_shard: int, seed: int = 0) -> list[str]:
    """Write WebDataset tars and return their paths.

    The shards are one file under many names: a job reads, decodes and answers each on its own all the same, and the
    disk is spared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "00000.tar"
    _write_shard(first, workload, per_shard, np.random.default_rng(seed))
    for number in range(1, shards):
        path = folder / f"{number:05d}.tar"
        path.unlink(missing_ok=True)
        os.link(first, path)
    return [str(folder / f"{number:05d}.tar") for number in range(shards)]


def _write_shard(path: Path, workload: str, samples: int, random: np.random.Generator) -> None:
    images = [synthesise(*draw_size(workload, random), random) for _ in range(IMAGES)]
    with tarfile.open(path, "w") as tar:
        for number in range(samples):
            image = images[number // QUESTIONS_PER_IMAGE[workload] % IMAGES]
            for ending, data in (("jpg", image), ("txt", make_question(workload, random).encode())):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))
