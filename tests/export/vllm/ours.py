"""The caches that the tests read, and what our own engine answers to the same questions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from tests.precompute.runs import job_config, run_here
from trio_ray.cache.input_samples import Reread, read_again
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import BUNDLED_MODEL, S3Config
from trio_ray.kv.prefix import Prefix
from trio_ray.lab.s3_server import S3Server
from trio_ray.method.method import Method
from trio_ray.model.decode.engine import generate
from trio_ray.model.replica import Replica
from trio_ray.source.sample import Sample, Turn

NEW_TOKENS = 16

Row = dict[str, Any]


@dataclass(frozen=True)
class Caches:
    """Uniform caches of the same questions."""

    kv_prompt: PrunedCache
    kv_image: PrunedCache
    embeds_prompt: PrunedCache
    embeds_image: PrunedCache


def make_caches(corpus: Path, replica: Replica, s3: S3Server, folder: Path) -> Caches:
    """Precompute them by the real stages, in this process."""

    def made(output: str, level: str, scope: str) -> PrunedCache:
        config = job_config(
            Path(BUNDLED_MODEL), corpus, output,
            method__layout="uniform", method__retention=0.25, cache__level=level, cache__scope=scope,
            cache__part_samples=100,
        )  # fmt: skip
        run_here(config, replica)
        return PrunedCache(output)

    return Caches(
        made(s3.fresh_uri(), "kv", "prompt"),
        made(s3.fresh_uri(), "kv", "image"),
        made(str(folder / "embeds-prompt"), "embeds", "prompt"),
        made(str(folder / "embeds-image"), "embeds", "image"),
    )


class Ours:
    """Our own engine's greedy answers, as token ids without the one that ends an answer."""

    def __init__(self, replica: Replica, caches: Caches) -> None:
        self.replica, self.caches = replica, caches
        self.rows: list[Row] = caches.kv_prompt.table.to_pylist()
        self.image_rows: list[Row] = caches.kv_image.table.to_pylist()

    @cached_property
    def samples(self) -> list[Sample]:
        """The samples themselves, read from the corpus."""
        return read_again(self.caches.kv_prompt, self.rows, Reread(S3Config()))

    @property
    def images(self) -> list[Image.Image]:
        """Each sample's image."""
        return [Image.open(io.BytesIO(sample.images[0])).convert("RGB") for sample in self.samples]

    @cached_property
    def questions(self) -> list[list[int]]:
        """The tokens that ask behind a prefix of scope image."""
        writer = self.replica.writer
        asked = []
        for row in self.image_rows:
            held = writer.ids(row["prompt"])
            whole = writer.continued(row["prompt"], [Turn(**turn) for turn in row["turns"]])
            stay, new = writer.new_ids(held, whole, row["prompt"])
            assert stay == len(held)
            asked.append(new)
        return asked

    @cached_property
    def texts(self) -> list[str]:
        """The whole prompts of the questions behind prefixes of scope image."""
        return [
            self.replica.writer.continued(row["prompt"], [Turn(**turn) for turn in row["turns"]])
            for row in self.image_rows
        ]

    @cached_property
    def unpruned(self) -> list[list[int]]:
        """Answers from all image tokens."""
        preparer = self.replica.preparer(1 << 24)
        prepared = [preparer.prepare(sample) for sample in self.samples]
        method = Method.unpruned(self.replica.decoder.depth)
        prefixes = [
            prefix
            for first in range(0, len(prepared), 20)
            for prefix in self.replica.prefill(prepared[first : first + 20], method).prefixes  # type: ignore[arg-type]
        ]
        return self._answers(prefixes)

    @cached_property
    def prompt(self) -> list[list[int]]:
        """Answers behind the stored prefixes of scope prompt."""
        return self._answers([self.caches.kv_prompt.prefix(row) for row in self.rows])

    @cached_property
    def image(self) -> list[list[int]]:
        """Answers to the questions behind the stored prefixes of scope image."""
        return self._answers([self.caches.kv_image.prefix(row) for row in self.image_rows], self.questions)

    @cached_property
    def embeds_prompt(self) -> list[list[int]]:
        """Answers from the stored embeddings of whole prompts."""
        cache = self.caches.embeds_prompt
        return self._answers(self.replica.prefill_embeds([cache.embeds(row) for row in cache.table.to_pylist()]))

    @cached_property
    def embeds_image(self) -> list[list[int]]:
        """Answers to the questions behind the stored embeddings of images."""
        cache = self.caches.embeds_image
        stored = [cache.embeds(row) for row in cache.table.to_pylist()]
        return self._answers(self.replica.prefill_embeds(stored, top_k=0), self.questions)

    def _answers(self, prefixes: list[Prefix], questions: list[list[int]] | None = None) -> list[list[int]]:
        stop = self.replica.stop_tokens
        found = generate(self.replica.decoder, prefixes, NEW_TOKENS, stop, questions)
        return [without_stop(answer, stop) for answer in found]


def without_stop(tokens: Sequence[int], stop: Sequence[int]) -> list[int]:
    """An answer's tokens up to the one that ends it."""
    return [token for token in tokens if token not in stop]
