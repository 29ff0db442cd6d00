"""What the tests ask vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trio_ray.export.uniform import image_row_counts, prefix_salt, row_ids
from trio_ray.model.loading import BUNDLED_FOLDER

Row = dict[str, Any]


def engine_options(cache: str) -> dict[str, Any]:
    """Settings of an engine that takes everything, with the connector to a cache."""
    return {
        "model": str(BUNDLED_FOLDER),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "block_size": 32,
        "enable_mm_embeds": True,
        "enable_prompt_embeds": True,
        "kv_transfer_config": {
            "kv_connector": "TrioRayConnector",
            "kv_connector_module_path": "trio_ray.export.vllm_connector",
            "kv_role": "kv_consumer",
            "kv_connector_extra_config": {"cache": cache},
        },
    }


def named(row: Row) -> dict[str, Any]:
    """How a request names its prefix."""
    return {"key": row["key"], "shard": row["shard"]}


def prefix_ids(row: Row, image_token_id: int, question: Sequence[int] = ()) -> list[int]:
    """The token ids of a prefix's rows and of a question behind them."""
    return [*row_ids(row["prompt_ids"], image_token_id, image_row_counts(row)), *question]


def salt(row: Row) -> str:
    """The salt that a request for a prefix must have."""
    return prefix_salt(row["key"], row["shard"])
