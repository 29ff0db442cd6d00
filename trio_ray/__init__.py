"""LLaVA-NeXT's pruned visual prefix, computed once on a Ray cluster and stored for good.

`PrunedCache`, `Replica` and `run_job` are imported when they are asked for, so that `import trio_ray` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio_ray.cache.pruned_cache import PrunedCache
    from trio_ray.model.replica import Replica
    from trio_ray.precompute.job import run_job

__all__ = ["PrunedCache", "Replica", "__version__", "run_job"]

_HOMES = {
    "PrunedCache": "trio_ray.cache.pruned_cache",
    "Replica": "trio_ray.model.replica",
    "run_job": "trio_ray.precompute.job",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("trio-ray")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
