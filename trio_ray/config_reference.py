"""The reference of all settings, made from the code: `python -m trio_ray.config_reference > jobs/CONFIGURATION.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trio_ray.config import JobConfig, Section
from trio_ray.distill.config import DistillConfig
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.kv.codecs.registry import codec_types, presets
from trio_ray.method.schedule import ScheduleShape
from trio_ray.method.selectors.catalogue import bundled_selectors
from trio_ray.method.selectors.selector import settings_model

HEAD = """# Configuration

Every setting of the jobs, made from the code by `python -m trio_ray.config_reference > jobs/CONFIGURATION.md`. In
YAML the dots are levels; on the command line any of them is `--set name=value`.
"""

JOBS: tuple[tuple[str, str, type[Section]], ...] = (
    ("Precompute", "`jobs/precompute.py`, `trio-ray precompute`", JobConfig),
    ("Evaluate", "`jobs/evaluate.py`, `trio-ray evaluate`", EvaluateConfig),
    ("Distill", "`jobs/distill.py`, `trio-ray distill`", DistillConfig),
)


def reference() -> str:
    """The whole page, in Markdown."""
    parts = [HEAD]
    for title, command, kind in JOBS:
        parts += [f"## {title}\n", f"{command}\n", _table(kind), ""]
    parts += [
        "## Codecs\n",
        "`cache.codec` is a name, or a mapping that begins with `name` and changes some parameters. Short names: "
        + ", ".join(f"`{name}`" for name in (*codec_types(), *presets()))
        + ".\n",
    ]
    for name, codec in codec_types().items():
        parts += [f"### {name}\n", f"{_sentence(codec.Settings.__doc__)}\n", _table(codec.Settings), ""]
    return "\n".join([*parts, *_selectors()]).rstrip() + "\n"


def _selectors() -> Iterator[str]:
    yield "## Selectors\n"
    yield (
        "`method.selector` is one of these names, or `module:Class` (docs/selectors.md). Each has its own settings,\n"
        "under `method.settings`, and a default schedule, here for the depth that it was made for.\n"
    )
    for name, kind in bundled_selectors().items():
        yield f"### {name}\n"
        summary, _, _ = (kind.__doc__ or "").partition("\n\n")
        yield f"{_sentence(summary)}\n"
        yield f"{_shape(kind.shape)}; positions {kind.positions}.\n"
        if kind.full_depth_shape is not None:
            settings = "".join(f"; {name} {value:g}" for name, value in kind.full_depth_settings.items())
            yield f"With `method.full_depth`: {_shape(kind.full_depth_shape).lower()}{settings}.\n"
        model = settings_model(kind)
        yield _table(model, "method.settings.") + "\n" if model.model_fields else "It has no settings.\n"


def _shape(shape: ScheduleShape) -> str:
    weights = " : ".join(f"{weight:g}" for weight in shape.weights)
    return f"Prunes before layers {list(shape.prune_points)} of {shape.layers} and keeps {weights}"


def _table(kind: type[BaseModel], prefix: str = "") -> str:
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, entry in _fields(kind, prefix):
        lines.append(f"| `{name}` | {_type(entry)} | {_default(entry)} | {_sentence(entry.description)} |")
    return "\n".join(lines)


def _fields(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All settings by dotted name; a section's own settings instead of the section."""
    for name, entry in kind.model_fields.items():
        if isinstance(entry.annotation, type) and issubclass(entry.annotation, Section):
            yield from _fields(entry.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry


def _type(entry: FieldInfo) -> str:
    return f"`{_words(entry.annotation)}`".replace("|", "\\|")


def _words(annotation: Any) -> str:
    """A type as people write it; the interpreter's own spelling differs from version to version."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " | ".join("none" if argument is NoneType else _words(argument) for argument in arguments)
    if origin is not None:
        return f"{origin.__name__}[{', '.join('...' if a is Ellipsis else _words(a) for a in arguments)}]"
    return "any" if annotation is Any else annotation.__name__


def _default(entry: FieldInfo) -> str:
    if entry.is_required():
        return "required"
    return f"`{entry.get_default(call_default_factory=True)!r}`".replace("|", "\\|")


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
