"""What the pipeline's samples and shards are called in the store's tables and records."""

from __future__ import annotations

from typing import Any

from trio_ray.method.schedule import Schedule
from trio_ray.model.prepare import PreparedImage, PreparedSample
from trio_ray.precompute.host_batch import GoodSample
from trio_ray.precompute.stored_batch import StoredSample
from trio_ray.source.sample import BadSample, Reason, Shard
from trio_ray.store.commits import ShardInput

TARGETS = ("answer_ids", "target_ids", "target_logprobs")


def shard_input(shard: Shard) -> ShardInput:
    """The shard as commit and failure records name it."""
    return ShardInput(shard.name, shard.uri, shard.size, shard.etag, shard.rows, shard.checksum)


def good_sample(sample: PreparedSample, schedule: Schedule) -> GoodSample:
    """A prepared sample without its pixels, and the columns of `store.tables.SAMPLES` that it knows itself."""
    part, answer = sample.image_part, sample.answer_tokens
    covered = part or sample
    columns = {
        "key": sample.key,
        "index": sample.index,
        "images": [_image_fields(image) for image in sample.images],
        "prompt": covered.prompt,
        "turns": [{"role": turn.role, "text": turn.text} for turn in part.turns] if part else None,
        "answer": sample.answer,
        "prompt_ids": list(covered.prompt_ids),
        "prompt_tokens": sample.rows - (len(sample.prompt_ids) - len(covered.prompt_ids)),
        "image_tokens": sample.image_tokens,
        "retention": schedule.mean_tokens(sample.image_tokens) / sample.image_tokens,
        "answer_ids": list(answer.ids) if answer else None,
    }
    return GoodSample(sample.key, sample.index, columns)


def not_finite(sample: GoodSample, stored: StoredSample) -> BadSample | None:
    """What stands for a sample whose prefill overflowed; None where it did not."""
    if stored.finite:
        return None
    detail = "the prefill overflowed to infinity or NaN; run it in another model.dtype, such as bfloat16"
    return BadSample(sample.key, sample.index, Reason.NOT_FINITE, detail)


def sample_row(
    sample: GoodSample, stored: StoredSample, codec: str | None, prefill_ms: float, encode_ms: float
) -> dict[str, Any]:
    """All columns of `store.tables.SAMPLES` but those that say where its member of the tar lies."""
    coded = stored.coded
    has_first_token = len(coded.top_ids) > 0
    return {
        **sample.columns,
        "kept": [kept.tolist() for kept in coded.kept],
        "segments": [
            {"first_layer": shape.first_layer, "layers": shape.layers, "rows": shape.rows} for shape in coded.shapes
        ],
        "codec": codec,
        "first_token": int(coded.top_ids[0]) if has_first_token else None,
        "first_logprob": float(coded.top_logprobs[0]) if has_first_token else None,
        "top_ids": coded.top_ids.tolist(),
        "top_logprobs": coded.top_logprobs.tolist(),
        **_target_fields(sample, stored),
        "prefill_ms": prefill_ms,
        "encode_ms": encode_ms,
    }


def _image_fields(image: PreparedImage) -> dict[str, Any]:
    return {
        "hash": image.hash,
        "width": image.width,
        "height": image.height,
        "grid_rows": image.grid[0],
        "grid_columns": image.grid[1],
        "tokens": image.tokens,
    }


def _target_fields(sample: GoodSample, stored: StoredSample) -> dict[str, Any]:
    targets = stored.targets
    if targets is None or sample.columns["answer_ids"] is None:
        return dict.fromkeys(TARGETS)
    return {"target_ids": targets.ids.tolist(), "target_logprobs": targets.logprobs.tolist()}
