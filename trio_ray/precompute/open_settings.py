"""Settings that a job leaves open (`cache.codec: auto`, `method.schedule: auto`).

An existing cache keeps what it has; a new one gets what is chosen on samples of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trio_ray.cache.identity import with_codec
from trio_ray.calibration.schedule_search import FoundSchedule
from trio_ray.config import JobConfig
from trio_ray.errors import IdentityMismatch
from trio_ray.method.method import Method
from trio_ray.precompute.codec_choice import CodecChoice
from trio_ray.store.dataset import Dataset, NotACacheError, create_or_check, load_dataset
from trio_ray.store.objects import ObjectStore

CODEC = "cache.codec"
SCHEDULE = "method.schedule"

CHOSEN_WITH_THE_SCHEDULE = ("prune_points", "weights", "positions", "layout", "full_layers", "dropped")
"""Entries of the identity's method that a search decides, beside the selector's settings."""


@dataclass(frozen=True)
class CalibrationSpec:
    """What choosing for a job needs; small, and free of credentials.

    Attributes:
        config: the job, with its dtype chosen; says what is open.
        model: the model's fingerprint.
    """

    config: JobConfig
    model: dict[str, str]


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a new cache; None for what the settings do not leave open."""

    codec: CodecChoice | None = None
    schedule: FoundSchedule | None = None

    @property
    def reasons(self) -> dict[str, str]:
        """By setting, what was chosen and why, in one line."""
        found: dict[str, str] = {}
        if self.schedule is not None:
            found[SCHEDULE] = str(self.schedule)
        if self.codec is not None:
            found[CODEC] = self.codec.why
        return found

    def method(self, config: JobConfig, layers: int) -> Method:
        """The job's method, of a model with so many layers."""
        return (config.method if self.schedule is None else self.schedule.method).build(layers)


Calibrator = Callable[[CalibrationSpec], Chosen]
"""Chooses for a job, and puts a basis into its cache."""


def has_open_settings(config: JobConfig) -> bool:
    """Whether something is left open."""
    return config.cache.chooses_codec or config.method.schedule == "auto"


def make_or_join(
    store: ObjectStore,
    identity: Mapping[str, Any],
    part_samples: Callable[[Chosen], int],
    spec: CalibrationSpec,
    calibrate: Calibrator,
    given: Collection[str] = (),
) -> tuple[Dataset, dict[str, str]]:
    """Join a cache, whatever it has where the settings are open, or make one and choose.

    Args:
        store: the cache.
        identity: of the job, with defaults for what is open.
        part_samples: samples of a part, given what was chosen.
        spec, calibrate: how it is chosen.
        given: dotted names of the settings that the user gave, which a refusal names first.

    Returns:
        The cache, and for each setting that was chosen here what and why.

    Raises:
        IdentityMismatch: the cache was made with other settings, apart from those that are open.
    """
    try:
        return _join(store, identity, spec.config, given), {}
    except NotACacheError:
        chosen = _choose(spec, calibrate)
    mine = _with_chosen(identity, spec.config, chosen)
    try:
        reasons = chosen.reasons
        made = create_or_check(store, mine, part_samples(chosen), spec.config.model.label, given, reasons)
    except IdentityMismatch:
        # Another run has made the cache since, with choices of its own; a basis of ours is garbage now.
        return _join(store, identity, spec.config, given), {}
    return made, reasons


def _choose(spec: CalibrationSpec, calibrate: Calibrator) -> Chosen:
    if spec.config.method.schedule == "given" and spec.config.cache.scope == "image":
        return Chosen(CodecChoice.of_image_scope())  # no model is needed for that
    return calibrate(spec)


def _with_chosen(identity: Mapping[str, Any], config: JobConfig, chosen: Chosen) -> dict[str, Any]:
    wanted = dict(identity)
    if chosen.codec is not None:
        wanted = with_codec(wanted, chosen.codec.spec)
    if chosen.schedule is not None:
        wanted["method"] = chosen.method(config, identity["method"]["layers"]).to_dict()
    return wanted


def _join(store: ObjectStore, identity: Mapping[str, Any], config: JobConfig, given: Collection[str]) -> Dataset:
    existing = load_dataset(store)
    wanted = with_existing(identity, config, existing)
    return create_or_check(store, wanted, existing.part_samples, given=given)


def with_existing(identity: Mapping[str, Any], config: JobConfig, existing: Dataset) -> dict[str, Any]:
    """The identity of a job that joins a cache: what its settings leave open is what the cache has."""
    wanted = dict(identity)
    if config.cache.chooses_codec:
        # None stands for a cache of another level, which is then what is refused.
        wanted = with_codec(wanted, (existing.identity.get("cache") or {}).get("codec"))
    if config.method.schedule == "auto":
        wanted["method"] = _method_as(existing.identity.get("method") or {}, identity["method"], config)
    return wanted


def _method_as(existing: Mapping[str, Any], wanted: Mapping[str, Any], config: JobConfig) -> dict[str, Any]:
    """The wanted method with what a search would decide taken from an existing one."""
    method = dict(wanted)
    if config.method.selector == "auto":
        method["selector"] = existing.get("selector")
    elif existing.get("selector") != wanted["selector"]:
        return method
    fixed = {"positions"} if config.method.positions is not None else set()
    fixed |= {"dropped"} if config.method.dropped is not None else set()
    fixed |= {"full_layers"} if config.method.full_depth != "auto" else set()
    fixed |= {"layout", "positions", "prune_points", "weights"} if config.method.layout == "uniform" else set()
    method |= {name: existing[name] for name in CHOSEN_WITH_THE_SCHEDULE if name in existing and name not in fixed}
    own = {name: wanted["settings"][name] for name in config.method.settings}
    method["settings"] = {**existing.get("settings", {}), **own}
    return method
