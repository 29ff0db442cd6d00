"""Parts of made-up samples, committed by the real writer: what a replica does once the model is done."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from trio_ray.store.commits import CommitRecord, ShardInput
from trio_ray.store.dataset import Dataset
from trio_ray.store.objects import ObjectStore
from trio_ray.store.parts import PartWriter

_LAYERS = 32
_IMAGE_TOKENS = 2340


def sample_bytes(key: str, size: int) -> bytes:
    """The bytes that stand for a sample's prefix; other ones for each key."""
    return random.Random(key).randbytes(size)


def sample_row(key: str, index: int) -> dict[str, Any]:
    """All columns of a sample but those that say where its bytes lie."""
    image = {"hash": "ab" * 16, "width": 640, "height": 480, "grid_rows": 2, "grid_columns": 2}
    return {
        "key": key,
        "index": index,
        "images": [{**image, "tokens": _IMAGE_TOKENS}],
        "prompt": "<image>\nWhat is this?",
        "turns": None,
        "answer": "a cat",
        "prompt_ids": [1, 32000, 5, 6],
        "prompt_tokens": _IMAGE_TOKENS + 3,
        "image_tokens": _IMAGE_TOKENS,
        "kept": [[0, 5, 9], [5, 9]],
        "segments": [
            {"first_layer": 0, "layers": 1, "rows": _IMAGE_TOKENS + 3},
            {"first_layer": 1, "layers": _LAYERS - 1, "rows": 6},
        ],
        "retention": 0.111,
        "codec": "raw",
        "first_token": 42,
        "first_logprob": -0.25,
        "top_ids": [42, 7],
        "top_logprobs": [-0.25, -2.0],
        "answer_ids": None,
        "target_ids": None,
        "target_logprobs": None,
        "prefill_ms": 12.5,
        "encode_ms": 3.5,
    }


def commit_part(
    store: ObjectStore,
    dataset: Dataset,
    shard: ShardInput,
    part: int,
    samples: Mapping[int, str],
    last: bool,
    member_bytes: int,
    bad: Sequence[int] = (),
) -> CommitRecord | None:
    """Commit a part with these samples (index -> key), of which those of the indices `bad` go to quarantine.

    Returns:
        The record; None if another attempt had committed the part.

    Raises:
        StoreError: nothing was committed, or the answer to the commit itself was lost.
    """
    writer = PartWriter(store, dataset, shard, part, "made-up")
    for index, key in samples.items():
        if index in bad:
            writer.quarantine(key, index, "image_corrupt", "made up to be bad")
        else:
            writer.add(sample_row(key, index), sample_bytes(key, member_bytes))
    return writer.commit(last)
