"""Finding a selector by its name: every file of this folder, and classes of the user's own modules."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from inspect import isabstract
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from trio_ray.errors import ConfigError
from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.selector import Selector, settings_model

PACKAGE = "trio_ray.method.selectors"

FIELD = "method.selector"


@cache
def bundled_selectors() -> dict[str, type[Selector]]:
    """The selectors of this package by name: each named class of each file in this folder."""
    found: dict[str, type[Selector]] = {}
    for entry in pkgutil.iter_modules([str(Path(__file__).parent)]):
        module = importlib.import_module(f"{PACKAGE}.{entry.name}")
        for kind in vars(module).values():
            if (
                isinstance(kind, type)
                and issubclass(kind, Selector)
                and kind.name
                and kind.__module__ == module.__name__
            ):
                found[kind.name] = kind
    return dict(sorted(found.items(), key=lambda item: (item[0] != "trio", item[0])))  # trio is what others compare to


def name_of(selector: Selector) -> str:
    """What `method.selector` calls it: the name of a bundled selector, `module:Class` of any other."""
    if isinstance(selector, AbsentSelector):
        return selector.named
    kind = type(selector)
    return kind.name if bundled_selectors().get(kind.name) is kind else f"{kind.__module__}:{kind.__qualname__}"


def selector_class(name: str) -> type[Selector]:
    """The class that `method.selector` names: a bundled selector, or `module:Class`, whose module is imported.

    Raises:
        ConfigError: there is no such selector, the module cannot be imported, or the class is not a selector.
    """
    module_name, colon, class_name = name.partition(":")
    if not colon:
        if name not in bundled_selectors():
            raise ConfigError(
                FIELD, f"there is no selector {name!r}; give one of {', '.join(bundled_selectors())}, or module:Class"
            )
        return bundled_selectors()[name]
    kind = getattr(_import(module_name, name), class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, Selector)) or isabstract(kind):
        raise ConfigError(FIELD, f"{name!r} must name a class that inherits from {Selector.__name__} and has a score")
    return kind


def _import(module: str, name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # an installed command does not look into the folder that it is started in
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise ConfigError(
            FIELD, f"the module of {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def make_selector(name: str, settings: Mapping[str, Any] | None = None) -> Selector:
    """A selector with the given settings; what is not given has the selector's own default.

    Args:
        name: of a bundled selector, or `module:Class`.
        settings: what the selector declares, by name.

    Raises:
        ConfigError: there is no such selector, or it has no such setting, or not with such a value.
    """
    kind = selector_class(name)
    model = settings_model(kind)
    try:
        checked = model.model_validate(dict(settings or {}))
    except ValidationError as error:
        first = error.errors()[0]
        wrong = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            declared = ", ".join(model.model_fields)
            has = f"its settings are: {declared}" if declared else "it has no settings"
            raise ConfigError(f"method.settings.{wrong}", f"is not a setting of selector {name!r}; {has}") from None
        message = f"{first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"
        raise ConfigError(f"method.settings.{wrong}", message) from None
    return kind(**dict(checked))


@dataclass(frozen=True)
class AbsentSelector(Selector):
    """Stands for the selector of a stored cache whose module is not installed here.

    Nobody needs the selector to read a cache, so the cache can be opened; only selecting raises.

    Attributes:
        named: what the cache calls it.
        stored: its settings, as the cache holds them.
        reason: why it is absent.
    """

    named: str = ""
    stored: Mapping[str, Any] | None = None
    reason: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """See `Selector`."""
        return dict(self.stored or {})

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """Always raises. See `Selector`."""
        raise ConfigError(FIELD, self.reason)
