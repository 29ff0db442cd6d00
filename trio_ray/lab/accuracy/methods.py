"""The methods that the tables compare, by the names they have there."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from trio_ray.config import MethodConfig
from trio_ray.errors import ConfigError
from trio_ray.method.method import Layout

RETENTIONS = (1.0, 0.333, 0.222, 0.111, 0.056)


@cache
def methods() -> dict[str, Mapping[str, Any]]:
    """The settings of `MethodConfig` for each name, without the retention.

    They are every selector of the package, the rows that it asks for beside itself (`Selector.compared`), and the
    encoder step. Importing the selectors takes seconds, so it happens when the table is asked for.
    """
    from trio_ray.method.selectors.catalogue import bundled_selectors

    table: dict[str, Mapping[str, Any]] = {}
    for name, kind in bundled_selectors().items():
        table[name] = {"selector": name}
        table |= {label: {"selector": name, **settings} for label, settings in kind.compared.items()}
    table["visionzip"] = {"encoder": "visionzip", "prune_points": (0,)}
    table["visionzip, then trio"] = {"encoder": "visionzip"}
    return table


def possible(name: str, layout: Layout, full_depth: float = 0.0) -> bool:
    """Whether a method of `methods` can have this layout, where uniform allows one prune before layer 0, compacted; and
    can have layers that run on all tokens, which an encoder step has dropped before.
    """
    settings = methods().get(name, {})
    if full_depth and "encoder" in settings:
        return False
    if layout == "ragged":
        return True
    second_prune = "encoder" in settings and "prune_points" not in settings
    return settings.get("positions") != "original" and not second_prune


def own_config(method: MethodConfig, retention: float) -> MethodConfig | None:
    """What the user has set of `method` (`--set method.NAME=VALUE`), at a retention; None where nothing is set.

    Raises:
        ConfigError: a fixed budget is set, which no retention can stand beside; or `schedule: auto`.
    """
    if method.schedule == "auto":
        raise ConfigError("method.schedule", "auto needs samples: give --auto N, and --methods to say for which rows")
    given = method.model_dump(exclude_unset=True)
    return MethodConfig.model_validate({**given, "retention": retention}) if given else None


def method_config(name: str, retention: float, layout: Layout = "ragged", full_depth: float = 0.0) -> MethodConfig:
    """The configuration behind a name of `methods`, or of a selector of your own, `module:Class`.

    Raises:
        ConfigError: there is no such name, or the selector of your own cannot be imported.
    """
    if ":" not in name and name not in methods():
        raise ConfigError("--methods", f"{name!r} is none of {', '.join(methods())}, and no module:Class")
    settings = {"selector": name} if ":" in name else methods()[name]
    common = {"retention": retention, "layout": layout, "full_depth": full_depth}
    return MethodConfig.model_validate({**common, **settings})
