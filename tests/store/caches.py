"""Caches with made-up samples: real files and records, only the numbers mean nothing."""

from __future__ import annotations

import random
from typing import Any

from trio_ray.store.commits import CommitRecord, ShardInput
from trio_ray.store.dataset import Dataset
from trio_ray.store.objects import ObjectStore
from trio_ray.store.parts import PartWriter
from trio_ray.store.tables import MemberKind

IDENTITY: dict[str, Any] = {
    "model": {"name": "tiny", "revision": None},
    "method": {"prune_points": [1, 2], "threshold": 0.8},
}
AWKWARD_KEYS = [
    "plain",
    "with.dots.jpg",
    "a/slash",
    "with space",
    "ünïcode-犬",
    "per%cent",
    "",
    "..",
    "k" * 5000,
    "__x__",
]


def shard(name: str = "train-00000.tar", etag: str = "e1") -> ShardInput:
    return ShardInput(name, f"s3://corpus/{name}", 1234, etag, None)


def row(key: str, index: int) -> dict[str, Any]:
    """All columns that a replica fills."""
    return {
        "key": key,
        "index": index,
        "images": [
            {
                "hash": "ab" * 16,
                "width": 640,
                "height": 480,
                "grid_rows": 2,
                "grid_columns": 2,
                "tokens": 2340,
            }
        ],
        "prompt": "<image>\nWhat is this?",
        "turns": None,
        "answer": None if index % 2 else "a cat",
        "prompt_ids": [1, 32000, 5, 6],
        "prompt_tokens": 2343,
        "image_tokens": 2340,
        "kept": [[0, 5, 9], [5, 9]],
        "segments": [
            {"first_layer": 0, "layers": 1, "rows": 2343},
            {"first_layer": 1, "layers": 31, "rows": 6},
        ],
        "retention": 0.111,
        "codec": "raw",
        "first_token": 42,
        "first_logprob": -0.25,
        "top_ids": [42, 7],
        "top_logprobs": [-0.25, -2.0],
        "answer_ids": [42, 2],
        "target_ids": [[42, 7], [2, 9]],
        "target_logprobs": [[-0.25, -2.0], [-0.125, -3.0]],
        "prefill_ms": 12.5,
        "encode_ms": 3.5,
    }


def kv_bytes(key: str, length: int = 3000) -> bytes:
    """Bytes that differ from sample to sample."""
    return random.Random(key).randbytes(length)


def write_part(
    store: ObjectStore,
    dataset: Dataset,
    part: int = 0,
    keys: list[str] | None = None,
    last: bool = True,
    source: ShardInput | None = None,
    bad: int = 1,
    kind: MemberKind | None = "kv",
) -> CommitRecord | None:
    """Commit a part with these samples and some in quarantine."""
    keys = [f"sample.{part}.{number}" for number in range(3)] if keys is None else keys
    writer = PartWriter(store, dataset, source or shard(), part, "run-1")
    for number, key in enumerate(keys):
        data = kv_bytes(key, 3000 + 100 * number)
        if kind is None:
            writer.add(row(key, 1000 * part + number), None)
        else:
            writer.add(row(key, 1000 * part + number), data, kind)
    for number in range(bad):
        writer.quarantine(f"bad{number}", 1000 * part + 500 + number, "image_corrupt", "cannot be decoded")
    return writer.commit(last)
