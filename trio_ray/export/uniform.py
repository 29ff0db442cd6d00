"""What an engine that holds the same rows in every layer, numbered from 0, can take of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.errors import TrioRayError
from trio_ray.kv.prefix import Prefix
from trio_ray.method.proxy import rotate


class NotPortable(TrioRayError):
    """The cache, or a prefix of it, holds what other engines cannot represent."""

    exit_code = 2

    def __init__(self, uri: str, message: str) -> None:
        super().__init__(f"{uri}: {message}")
        self.uri = uri


@dataclass(frozen=True)
class UniformKV:
    """Keys and values of one prefix, the same rows in every layer.

    Attributes:
        keys, values: (layers, rows, kv_heads, head_dim). Keys are rotated, row r at position r.
    """

    keys: Tensor
    values: Tensor

    @property
    def rows(self) -> int:
        """Rows that each layer holds."""
        return self.keys.shape[1]


class KeyRotation:
    """Turns stored keys to where the first row has position 0.

    Prefixes are stored right-aligned: their last row is at the last position of the unpruned prompt. RoPE depends on
    differences alone, so turning all keys back by the first row's position changes no answer.

    Args:
        config: the text backbone's configuration, which says how it rotates.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self._rotary = LlamaRotaryEmbedding(config)

    def to_row_0(self, prefix: Prefix) -> UniformKV:
        """Keys and values of a prefix of one segment at consecutive positions, in its own dtype and on its device.

        Raises:
            ValueError: the prefix has several segments, or its positions have gaps.
        """
        if len(prefix.segments) != 1:
            raise ValueError(f"the prefix has {len(prefix.segments)} runs of layers with other rows each")
        (segment,) = prefix.segments
        first = segment.position[0]
        if not torch.equal(segment.position, first + torch.arange(segment.rows, dtype=first.dtype)):
            raise ValueError("the positions of the prefix have gaps")
        device = segment.keys.device
        back = -first.long()[None, None].to(device)
        cos, sin = self._rotary.to(device)(torch.empty(0, device=device), back)
        scaling = self._rotary.attention_scaling  # of some kinds of RoPE; the keys have it already
        turned = rotate(segment.keys.float(), cos[0] / scaling, sin[0] / scaling)
        return UniformKV(turned.to(segment.keys.dtype), segment.values)


def require_uniform(cache: PrunedCache) -> None:
    """Check that every layer of the prefixes holds the same rows, at positions without gaps.

    Raises:
        NotPortable: says what the cache was made with instead, and which setting makes one that fits.
    """
    method = cache.method
    if method.layout == "uniform":
        return
    points = list(method.schedule.prune_points)
    found = f"it has prune points {points} and {method.positions} positions"
    raise NotPortable(
        cache.uri,
        f"other engines hold the same rows in every layer and number them from 0, but {found}; "
        "precompute with method.layout: uniform",
    )


def image_row_counts(row: dict[str, Any]) -> list[int]:
    """How many rows of each image a prefix of one prune point keeps, from the sample's row in the table."""
    counts = []
    first = 0
    for image in row["images"]:
        end = first + image["tokens"]
        counts.append(sum(first <= number < end for number in row["kept"][0]))
        first = end
    return counts


def row_ids(prompt_ids: Sequence[int], image_token_id: int, image_rows: Sequence[int]) -> list[int]:
    """The token id of each row of a pruned prompt: an image's id stands once for each of its rows.

    Args:
        prompt_ids: column `prompt_ids`, each image as one id.
        image_token_id: that id.
        image_rows: rows of each image that are left.
    """
    counts = iter(image_rows)
    ids: list[int] = []
    for token in prompt_ids:
        ids += [token] * (next(counts) if token == image_token_id else 1)
    return ids


def prefix_salt(key: str, shard: str | None = None) -> str:
    """vLLM's `cache_salt` for requests that name a prefix: it keeps the blocks of different images apart."""
    return key if shard is None else f"{shard}:{key}"
