"""Writes the small caches under tests/data/caches that every later version must be able to read.

    python -m tests.kv.make_kept_caches NAME...

makes those of the named codecs anew, with what their prefixes decode to beside them. Do so only for a codec that has
none yet: an old cache that can no longer be read is what the test is there to find.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.kv.bases import make_basis, make_segments
from tests.kv.prefixes import contained, random_prefix
from tests.store.caches import row, shard
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.kv.batch import PrefixBatch, SegmentBatch
from trio_ray.kv.codecs.registry import full_spec, make_codec
from trio_ray.kv.codecs.transform_basis import write_basis
from trio_ray.kv.prefix import Prefix
from trio_ray.store.bases import read_basis, store_basis
from trio_ray.store.dataset import create_or_check
from trio_ray.store.local import LocalStore
from trio_ray.store.parts import PartWriter

FOLDER = Path(__file__).parents[1] / "data" / "caches"
EXPECTED = "expected.safetensors"
TRANSFORM = "transform"
SPECS: dict[str, dict[str, Any]] = {
    "raw": {"name": "raw"},
    "int8": {"name": "int8"},
    "int4": {"name": "int4", "key_group": 32, "value_group": 64},
    "int2": {"name": "int2", "zstd": 0, "protected": "raw", "sinks": 5},
    TRANSFORM: {"name": TRANSFORM},
}
"""Kept cache -> codec; together they take every way through the format."""


def prefixes(name: str) -> list[Prefix]:
    """What is stored."""
    if name == TRANSFORM:
        segments = tuple(_placed(segment) for segment in make_segments(2, seed=7))
        images = segments[1].image_counts
        return PrefixBatch(
            lengths=(20, 20),
            segments=segments,
            kept=(torch.cat([torch.arange(count) for count in images]).int(),),
            kept_counts=(images,),
            top_ids=torch.tensor([[5, 6], [7, 8]], dtype=torch.int32),
            top_logprobs=torch.tensor([[-0.5, -1.0], [-0.25, -2.0]]),
        ).split()
    return [
        random_prefix(torch.bfloat16, rows, (1, 2, 3), kv_heads=2, head_dim=8, seed=seed)
        for seed, rows in enumerate([(45, 20, 10), (24, 24, 8)])
    ]


def _placed(segment: SegmentBatch) -> SegmentBatch:
    """With positions such as a prefill leaves: ascending, the last row's behind all others."""
    position = torch.cat([torch.arange(20 - length, 20) for length in segment.lengths]).int()
    return replace(segment, position=position)


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
    store = LocalStore(FOLDER / name / "cache")
    spec = SPECS[name]
    if name == TRANSFORM:
        spec = {**spec, "basis": store_basis(store, write_basis(make_basis(0.05)))}
    codec = make_codec(full_spec(spec), lambda digest: read_basis(store, digest))
    dataset = create_or_check(store, {"cache": {"codec": codec.spec}}, part_samples=10)
    writer = PartWriter(store, dataset, shard(), 0, "kept")
    for number, prefix in enumerate(prefixes(name)):
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
