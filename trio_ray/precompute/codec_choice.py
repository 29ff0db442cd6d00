"""The codec that was chosen for a cache whose settings leave it open (`cache.codec: auto`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trio_ray.calibration.auto import Uncalibrated
from trio_ray.calibration.choice import FittedCodec
from trio_ray.kv.codecs.registry import full_spec


@dataclass(frozen=True)
class CodecChoice:
    """A codec by its parameters, whose basis lies in the cache.

    Attributes:
        spec: the parameters.
        why: it is this one, in one line.
        times_smaller: than 16 bit its prefixes are, measured; 1 where nothing was.
    """

    spec: dict[str, Any]
    why: str
    times_smaller: float = 1.0

    @classmethod
    def of(cls, made: FittedCodec | Uncalibrated) -> CodecChoice:
        """In words."""
        if isinstance(made, Uncalibrated):
            return cls(full_spec("raw"), f"raw, because {made.reason}")
        found = made.measured
        return cls(
            made.codec.spec,
            f"transform, {found.ratio:.1f} times smaller than 16 bit; the first answer token's distribution moves by "
            f"{found.divergence:.4f} nats, {found.agreement:.1%} are the same ({found.samples} held-out samples)",
            found.ratio,
        )

    @classmethod
    def of_image_scope(cls) -> CodecChoice:
        """The codec of a cache of scope image, for which there is nothing to calibrate on."""
        reason = "a basis is chosen by the answers behind a prompt, and with scope image the question is still to come"
        return cls.of(Uncalibrated(reason))
