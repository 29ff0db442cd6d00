"""Every codec by its name, found among the modules of this package: each declares its settings, presets and itself.

torch is imported only when a codec is asked for, so that a job's settings can be read without it.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trio_ray.kv.codecs.spec import CodecSpec

if TYPE_CHECKING:
    from trio_ray.kv.codecs.codec import Codec

ReadBasis = Callable[[str], bytes]
"""Hash of a calibrated basis -> its bytes."""


@functools.cache
def codec_types() -> dict[str, type[Codec]]:
    """Name -> codec, in the order of their names."""
    from trio_ray.kv.codecs import codec as base

    package = importlib.import_module("trio_ray.kv.codecs")
    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    found = {
        kind.codec_name(): kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, base.Codec) and kind is not base.Codec
    }
    return dict(sorted(found.items()))


def presets() -> dict[str, dict[str, Any]]:
    """Short names -> the settings that they stand for. A codec's own name stands for its defaults."""
    return {name: dict(given) for kind in codec_types().values() for name, given in kind.PRESETS.items()}


def full_spec(choice: str | Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a codec, as JSON, from a name, or from a mapping that begins with `name` and changes some.

    Raises:
        ValueError: unknown name or parameter, or a value out of range; says which.
    """
    return parse_spec(choice).model_dump(mode="json")


def parse_spec(choice: str | Mapping[str, Any]) -> CodecSpec:
    """The same as an object. Raises `ValueError` likewise."""
    given = {"name": choice} if isinstance(choice, str) else dict(choice)
    name, types, short = given.get("name"), codec_types(), presets()
    if not isinstance(name, str) or name not in types | short:
        raise ValueError(f"name {name!r} is none of {', '.join(sorted({*types, *short}))}")
    preset = short.get(name, {})
    given = {**given, **{key: value for key, value in preset.items() if key == "name" or key not in given}}
    try:
        return types[given["name"]].Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{field}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})") from None


def make_codec(spec: Mapping[str, Any], read_basis: ReadBasis | None = None) -> Codec:
    """The codec of a spec.

    Args:
        spec: as `full_spec` gives it and the identity stores it.
        read_basis: where a codec gets its calibrated basis, if it has one.

    Raises:
        CodecError: unknown name or parameter.
    """
    from trio_ray.kv.codecs.codec import CodecError

    try:
        settings = parse_spec(spec)
    except ValueError as error:
        raise CodecError(f"codec {error}") from None
    return codec_types()[settings.name].make(settings, read_basis)
