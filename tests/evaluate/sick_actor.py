"""An actor that answers questions and may be sick: real processes, for tests of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trio_ray.cluster.actors import WantsMore
from trio_ray.evaluate.actor import AnswerActor, Chunk
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.evaluate.decode import Decoded


class OneIsSick(AnswerActor):
    """The first of these actors that is given a chunk fails at every one, sooner than others answer theirs, as one on a
    lost device does. It leaves a file in `folder` for each.
    """

    def __init__(self, config: EvaluateConfig, folder: Path) -> None:
        super().__init__(config)
        self._folder = folder

    def run(self, work: Chunk) -> Iterator[Decoded | WantsMore]:
        """See `AnswerActor`."""
        mark = self._folder / "sick"
        with suppress(FileExistsError), mark.open("x") as file:
            file.write(str(os.getpid()))
        if mark.read_text() == str(os.getpid()):
            (self._folder / f"chunk-{work.number}").touch()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        yield from super().run(work)
