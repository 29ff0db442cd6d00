"""The forms in which other engines take a stored prefix, and what a request of each form says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from trio_ray.cache.pruned_cache import PrunedCache, StoredPrefix
from trio_ray.cache.unreadable import UnreadablePrefix
from trio_ray.export.uniform import (
    KeyRotation,
    NotPortable,
    image_row_counts,
    prefix_salt,
    require_uniform,
    row_ids,
)
from trio_ray.model.checkpoint import Checkpoint
from trio_ray.model.loading import load_processor
from trio_ray.model.prompt import PromptWriter
from trio_ray.source.sample import Turn

FormName = Literal["prompt_embeds", "image_rows", "kv"]
"""prompt_embeds: embeddings of the whole prompt; image_rows: embeddings of the image's rows alone; kv: keys and
values. What a cache holds and how far its prefixes go decide which of them it is exported as.
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """One prefix in the form that another engine takes.

    Attributes:
        row: the sample's row of the cache's table.
        tensors: what its file holds, by name.
        rows: rows of the prefix.
        image_rows: how many of them are the image's.
        request: what a request says beside the tensors.
    """

    row: Row
    tensors: dict[str, Tensor]
    rows: int
    image_rows: int
    request: dict[str, Any]


def form_of(cache: PrunedCache, renumber: bool = False) -> FormName:
    """The form in which a cache can be exported.

    Args:
        cache: what is exported.
        renumber: accept embeddings whose rows were not numbered from 0 when the cache was made.

    Raises:
        NotPortable: the cache holds what other engines cannot represent.
    """
    if cache.level == "kv":
        require_uniform(cache)
        return "kv"
    if cache.level == "indices":
        raise NotPortable(cache.uri, "it holds indices alone; precompute with cache.level: embeds or kv")
    if cache.method.positions == "original" and not renumber:
        raise NotPortable(
            cache.uri,
            "its rows keep their positions of the unpruned prompt, but other engines number rows from 0, and some "
            "answers would differ; precompute with method.layout: uniform, or accept that with --renumber",
        )
    return "image_rows" if cache.scope == "image" else "prompt_embeds"


class Exporter:
    """Turns stored prefixes into the form that other engines take.

    Args:
        cache: where they are.
        checkpoint: the model that made it.
        form: see `form_of`.

    Attributes:
        left_out: keys of samples with several images, which the form image_rows does not have.
    """

    def __init__(self, cache: PrunedCache, checkpoint: Checkpoint, form: FormName) -> None:
        self.cache, self.form = cache, form
        self.left_out: list[str] = []
        self._writer: PromptWriter = checkpoint.writer
        self._image_token_id: int = checkpoint.config.image_token_id
        self._bos = beginning(load_processor(checkpoint.folder)[0])
        self._rotation = KeyRotation(checkpoint.config.get_text_config())

    def export(self, rows: Iterable[Row]) -> Iterator[Exported]:
        """The prefixes of these rows, in order.

        Raises:
            PrefixError: a prefix is gone or damaged.
            StoreError: the cache cannot be read.
        """
        if self.form == "kv":
            for batch in self.cache.restored(rows):
                yield from map(self._keys_and_values, batch)
            return
        for row in rows:
            if self.form == "image_rows" and len(row["images"]) > 1:
                self.left_out.append(row["key"])
            else:
                yield self._embeds(row)

    def _keys_and_values(self, outcome: StoredPrefix | UnreadablePrefix) -> Exported:
        if isinstance(outcome, UnreadablePrefix):
            raise outcome
        row = outcome.row
        kv = self._rotation.to_row_0(outcome.prefix)
        image_rows = image_row_counts(row)
        ids = row_ids(row["prompt_ids"], self._image_token_id, image_rows)
        request = {
            "prompt_token_ids": [*ids, *self._question_ids(row)],
            "cache_salt": prefix_salt(row["key"], row["shard"]),
            "kv_transfer_params": {"key": row["key"], "shard": row["shard"]},
        }
        return Exported(row, {"keys": kv.keys, "values": kv.values}, kv.rows, sum(image_rows), request)

    def _embeds(self, row: Row) -> Exported:
        embeds = self.cache.embeds(row)
        image_rows = int((~embeds.text).sum())
        if self.form == "image_rows":
            tensors = {"image_rows": embeds.rows[~embeds.text][None]}
        else:
            tensors = {"prompt_embeds": embeds.rows, "token_ids": embeds.token_ids, "text": embeds.text}
        prompt = self._text(row).removeprefix(self._bos)  # engines that are given a text put it there themselves
        return Exported(row, tensors, len(embeds.rows), image_rows, {"prompt": prompt})

    def _text(self, row: Row) -> str:
        """The prompt that is answered: the stored one, or behind an image the sample's own question."""
        if row["turns"] is None:
            return str(row["prompt"])
        return self._writer.continued(row["prompt"], [Turn(**turn) for turn in row["turns"]])

    def _question_ids(self, row: Row) -> list[int]:
        if row["turns"] is None:
            return []
        held = self._writer.ids(row["prompt"])
        _, new = self._writer.new_ids(held, self._text(row), row["prompt"])
        return new


def beginning(processor: Any) -> str:
    """What a model's tokenizer puts before every text, as text; often `<s>`, for some models nothing."""
    tokenizer = processor.tokenizer
    bos = tokenizer.bos_token
    return bos if bos is not None and tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id] else ""
