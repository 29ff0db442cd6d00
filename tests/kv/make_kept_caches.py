"""Writes the small caches under tests/data/caches that every later version must be able to read.

    python -m tests.kv.make_kept_caches NAME...

makes those of the named codecs anew, with what their prefixes decode to beside them. Do so only for a codec that has
none yet: an old cache that can no longer be read is what the test is there to find.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.kv.prefixes import codec_of, contained, random_prefix
from tests.store.caches import row, shard
from trio_ray.cache import PrunedCache
from trio_ray.kv.prefix import Prefix
from trio_ray.store.dataset import create_or_check
from trio_ray.store.local import LocalStore
from trio_ray.store.parts import PartWriter

FOLDER = Path(__file__).parents[1] / "data" / "caches"
EXPECTED = "expected.safetensors"
SPECS: dict[str, dict[str, Any]] = {
    "raw": {"name": "raw"},
    "fp8": {"name": "fp8"},
    "int8": {"name": "int8"},
    "int4": {"name": "int4", "first_segment": "kept"},
    "int2": {
        "name": "int2",
        "zstd": 0,
        "protected": "raw",
        "sinks": 5,
        "layers": {"0": {"keys": 3}, "4-5": {"values": 6}},
    },
}
"""Kept cache -> codec; together they take every way through the format."""


def prefixes() -> list[Prefix]:
    """What is stored."""
    return [
        random_prefix(torch.bfloat16, rows, (1, 2, 3), kv_heads=2, head_dim=8, seed=seed)
        for seed, rows in enumerate([(45, 20, 10), (24, 24, 8)])
    ]


def tensors_of(prefix: Prefix, key: str) -> dict[str, torch.Tensor]:
    """All of a prefix by name."""
    tensors = {"top_ids": prefix.top_ids, "top_logprobs": prefix.top_logprobs, "length": torch.tensor([prefix.length])}
    tensors |= {f"kept.{point}": kept for point, kept in enumerate(prefix.kept)}
    for number, segment in enumerate(prefix.segments):
        for name in ("keys", "values", "position", "text"):
            tensors[f"{number}.{name}"] = getattr(segment, name)
    return {f"{key}.{name}": tensor.contiguous().clone() for name, tensor in tensors.items()}


def make(name: str) -> None:
    """Write one cache and what it decodes to."""
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    codec = codec_of(SPECS[name])
    store = LocalStore(FOLDER / name / "cache")
    dataset = create_or_check(store, {"cache": {"codec": codec.spec}}, part_samples=10)
    writer = PartWriter(store, dataset, shard(), 0, "kept")
    for number, prefix in enumerate(prefixes()):
        key = f"sample{number}"
        writer.add({**row(key, number), "codec": codec.name}, contained(prefix, codec, key, dataset.identity_hash))
    writer.commit(last=True)
    expected = {}
    for item in PrunedCache(str(FOLDER / name / "cache")).stream():
        expected |= tensors_of(item.prefix, item.row["key"])
    save_file(expected, str(FOLDER / name / EXPECTED))


if __name__ == "__main__":
    for chosen in sys.argv[1:]:
        make(chosen)
