"""The selections that the tables compare, by the names they have there."""

from __future__ import annotations

from typing import Any

from trio_ray.config import MethodConfig

AUTHORS_NMS = 0.8

METHODS: dict[str, dict[str, Any]] = {
    "trio": {},
    "trio-plus": {"selector": "trio-plus"},
    "trio, original positions": {"positions": "original"},
    "trio, no NMS": {"threshold": 2.0},
    "random": {"selector": "random"},
    "random + NMS": {"selector": "random", "threshold": AUTHORS_NMS},
    "uniform": {"selector": "uniform"},
    "attention": {"selector": "attention"},
    "attention + NMS": {"selector": "attention", "threshold": AUTHORS_NMS},
    "sieve": {"selector": "sieve"},
    "visionzip": {"encoder": "visionzip", "prune_points": (0,)},
    "visionzip, then trio": {"encoder": "visionzip"},
}
"""Settings of `MethodConfig` for each name; the retention comes on top."""

RETENTIONS = (1.0, 0.333, 0.222, 0.111, 0.056)


def method_config(name: str, retention: float) -> MethodConfig:
    """The configuration behind a name. Raises `KeyError` for an unknown one."""
    return MethodConfig(retention=retention, **METHODS[name])
