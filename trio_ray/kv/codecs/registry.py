"""A codec from what a cache's identity says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trio_ray.kv.codecs.codec import Codec, CodecError
from trio_ray.kv.codecs.fp8 import Fp8
from trio_ray.kv.codecs.integer import Integer
from trio_ray.kv.codecs.raw import Raw
from trio_ray.kv.codecs.spec import Fp8Spec, IntegerSpec, RawSpec, TransformSpec, parse_spec
from trio_ray.kv.codecs.transform import Transform
from trio_ray.kv.codecs.transform_basis import read_basis as parse_basis

ReadBasis = Callable[[str], bytes]
"""Hash of a calibrated basis -> its bytes."""


def make_codec(spec: Mapping[str, Any], read_basis: ReadBasis | None = None) -> Codec:
    """The codec of a spec.

    Args:
        spec: as `full_spec` gives it and the identity stores it.
        read_basis: where a codec gets its calibrated basis, if it has one.

    Raises:
        CodecError: unknown name or parameter.
    """
    try:
        settings = parse_spec(spec)
    except ValueError as error:
        raise CodecError(f"codec {error}") from None
    match settings:
        case RawSpec():
            return Raw(settings)
        case Fp8Spec():
            return Fp8(settings)
        case IntegerSpec():
            return Integer(settings)
        case TransformSpec():
            return _transform(settings, read_basis)
    raise CodecError(f"codec {settings.name!r} has no implementation")


def _transform(settings: TransformSpec, read_basis: ReadBasis | None) -> Transform:
    if read_basis is None:
        raise CodecError(f"codec.basis: nothing here can read the basis {settings.basis}")
    return Transform(settings, parse_basis(read_basis(settings.basis)))
