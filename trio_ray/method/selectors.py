"""All selectors by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trio_ray.method.attention_score import AttentionScore
from trio_ray.method.random_choice import RandomChoice
from trio_ray.method.selector import Selector
from trio_ray.method.sieve import Sieve
from trio_ray.method.trio import Trio
from trio_ray.method.uniform import Uniform

SELECTORS: dict[str, type[Selector]] = {
    "trio": Trio,
    "random": RandomChoice,
    "uniform": Uniform,
    "attention": AttentionScore,
    "sieve": Sieve,
}


def selector_named(name: str, threshold: float | None = None, supervised: Sequence[int] | None = None) -> Selector:
    """A selector with its own defaults where a setting is None. Raises `KeyError` for an unknown name."""
    settings: dict[str, Any] = {}
    if threshold is not None:
        settings["threshold"] = threshold
    if supervised is not None:
        settings["supervised"] = tuple(supervised)
    return SELECTORS[name](**settings)
