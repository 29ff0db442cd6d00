"""What the pipeline's samples and shards are called in the store's tables and records."""

from __future__ import annotations

from typing import Any

from trio_ray.kv.prefix import Prefix
from trio_ray.method.schedule import Schedule
from trio_ray.model.prepare import PreparedSample
from trio_ray.source.sample import Shard
from trio_ray.store.commits import ShardInput


def shard_input(shard: Shard) -> ShardInput:
    """The shard as commit and failure records name it."""
    return ShardInput(shard.name, shard.uri, shard.size, shard.etag, shard.rows)


def sample_row(
    sample: PreparedSample,
    prefix: Prefix,
    schedule: Schedule,
    codec: str,
    prefill_ms: float,
    encode_ms: float,
) -> dict[str, Any]:
    """All columns of `store.tables.SAMPLES` but those that say where the prefix lies."""
    return {
        "key": sample.key,
        "index": sample.index,
        "images": [
            {
                "hash": image.hash,
                "width": image.width,
                "height": image.height,
                "grid_rows": image.grid[0],
                "grid_columns": image.grid[1],
                "tokens": image.tokens,
            }
            for image in sample.images
        ],
        "prompt": sample.prompt,
        "answer": sample.answer,
        "prompt_ids": list(sample.prompt_ids),
        "prompt_tokens": sample.rows,
        "image_tokens": sample.image_tokens,
        "kept": [kept.tolist() for kept in prefix.kept],
        "segments": [
            {"first_layer": segment.first_layer, "layers": segment.layers, "rows": segment.rows}
            for segment in prefix.segments
        ],
        "retention": schedule.mean_tokens(sample.image_tokens) / sample.image_tokens,
        "codec": codec,
        "first_token": prefix.first_token,
        "first_logprob": float(prefix.top_logprobs[0]),
        "top_ids": prefix.top_ids.tolist(),
        "top_logprobs": prefix.top_logprobs.tolist(),
        "prefill_ms": prefill_ms,
        "encode_ms": encode_ms,
    }
