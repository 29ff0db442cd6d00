"""The codec of a cache whose settings leave it open: what an existing one has, or what is calibrated for a new one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trio_ray.cache.identity import with_codec
from trio_ray.calibration.auto import Uncalibrated
from trio_ray.calibration.choice import FittedCodec
from trio_ray.config import JobConfig
from trio_ray.errors import IdentityMismatch
from trio_ray.kv.codecs.registry import full_spec
from trio_ray.store.dataset import Dataset, NotACacheError, create_or_check, load_dataset
from trio_ray.store.objects import ObjectStore

CODEC = "cache.codec"


@dataclass(frozen=True)
class CalibrationSpec:
    """What calibrating for a job needs; small, and free of credentials.

    Attributes:
        config: the job, with its dtype chosen.
        model: the model's fingerprint.
    """

    config: JobConfig
    model: dict[str, str]


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


Calibrator = Callable[[CalibrationSpec], CodecChoice]
"""Calibrates for a job, and puts the basis into its cache."""


def make_or_join(
    store: ObjectStore,
    identity: Mapping[str, Any],
    part_samples: Callable[[float], int],
    spec: CalibrationSpec,
    calibrate: Calibrator,
    given: Collection[str] = (),
) -> tuple[Dataset, str | None]:
    """Join a cache, whatever its codec, or make one with a codec of its own (`cache.codec: auto`).

    Args:
        store, identity: of the cache.
        part_samples: samples of a part, by how many times smaller than 16 bit they are.
        spec, calibrate: how a codec is found.
        given: dotted names of the settings that the user gave, which a refusal names first.

    Returns:
        The cache, and why it has this codec where that was decided here.

    Raises:
        IdentityMismatch: the cache was made with other settings, the codec apart.
    """
    try:
        return _join(store, identity, given), None
    except NotACacheError:
        choice = _choose(spec, calibrate)
    try:
        size = part_samples(choice.times_smaller)
        return create_or_check(store, with_codec(identity, choice.spec), size, spec.config.model.label), choice.why
    except IdentityMismatch as difference:
        if not all(field.startswith(CODEC) for field, _, _ in difference.differences):
            raise
        # Another run has made the cache since, with a basis of its own; ours is garbage now.
        return _join(store, identity, given), None


def _choose(spec: CalibrationSpec, calibrate: Calibrator) -> CodecChoice:
    if spec.config.cache.scope == "image":
        reason = "a basis is chosen by the answers behind a prompt, and with scope image the question is still to come"
        return CodecChoice.of(Uncalibrated(reason))
    return calibrate(spec)


def _join(store: ObjectStore, identity: Mapping[str, Any], given: Collection[str]) -> Dataset:
    existing = load_dataset(store)
    # None stands for a cache of another level, which is then what is refused.
    codec = (existing.identity.get("cache") or {}).get("codec")
    return create_or_check(store, with_codec(identity, codec), existing.part_samples, given=given)
