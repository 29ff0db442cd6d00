"""All selectors by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trio_ray.method.attention_score import AttentionScore
from trio_ray.method.random_choice import RandomChoice
from trio_ray.method.selector import Positions, Selector
from trio_ray.method.sieve import Sieve
from trio_ray.method.trio import Trio
from trio_ray.method.trio_plus import TrioPlus
from trio_ray.method.uniform import Uniform

SELECTORS: dict[str, type[Selector]] = {
    "trio": Trio,
    "random": RandomChoice,
    "uniform": Uniform,
    "attention": AttentionScore,
    "sieve": Sieve,
    "trio-plus": TrioPlus,
}


def selector_named(
    name: str,
    threshold: float | None = None,
    supervised: Sequence[int] | None = None,
    positions: Positions | None = None,
) -> Selector:
    """A selector with its own defaults where a setting is None. Raises `KeyError` for an unknown name."""
    settings: dict[str, Any] = {"threshold": threshold, "supervised": supervised, "positions": positions}
    return SELECTORS[name](**{setting: value for setting, value in settings.items() if value is not None})
