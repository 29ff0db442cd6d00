"""The method: everything that decides which image tokens a prefix keeps, as one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trio_ray.errors import ConfigError
from trio_ray.method.known_indices import KnownIndices
from trio_ray.method.rows import Positions
from trio_ray.method.schedule import DEFAULT_RETENTION, ENCODER_SHAPE, UNIFORM_SHAPE, Schedule, ScheduleShape
from trio_ray.method.selectors.catalogue import AbsentSelector, make_selector, name_of, selector_class
from trio_ray.method.selectors.selector import Selector, settings_model
from trio_ray.method.visionzip import VisionZip

Layout = Literal["ragged", "uniform"]
Dropped = Literal["lost", "represented"]

SCHEDULE_ENTRIES = ("layers", "prune_points", "retention", "tokens", "keep", "weights", "full_layers")
"""Names in a manifest's method, in the order in which `_schedule` takes them."""


@dataclass(frozen=True)
class Method:
    """Which image tokens are kept, in which layers, and at which positions.

    A job builds it once from its settings (`build`). The cache's manifest holds it (`to_dict`), replicas and readers
    take it from there (`from_dict`).

    Attributes:
        schedule: how many image tokens each layer holds.
        selector: which ones.
        positions: what becomes of the positions of the rows that stay.
        encoder_reducer: does the first prune point, which is then 0, behind the vision tower; None for no such step.
        dropped: whether the rows that stay weigh as much in attention as all did (`method.representation`).
    """

    schedule: Schedule
    selector: Selector
    positions: Positions = "compact"
    encoder_reducer: VisionZip | None = None
    dropped: Dropped = "lost"

    def __post_init__(self) -> None:
        if self.encoder_reducer is None:
            return
        if self.schedule.full_layers:
            raise ConfigError(
                "method.full_depth", "is not possible with method.encoder, which drops tokens before layer 0"
            )
        if self.schedule.prune_points[:1] != (0,):
            raise ConfigError("method.prune_points", "must begin with 0, since method.encoder does the prune point 0")
        if self.positions == "original":
            raise ConfigError(
                "method.positions", "original is not possible with method.encoder, whose merged tokens have no position"
            )
        if self.dropped == "represented":
            raise ConfigError(
                "method.dropped", "represented is not possible with method.encoder, which drops tokens before layer 0"
            )

    @classmethod
    def build(
        cls,
        layers: int,
        *,
        retention: float | None = None,
        tokens: float | None = None,
        keep: Sequence[int] | None = None,
        prune_points: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
        layout: Layout = "ragged",
        selector: str = "trio",
        settings: Mapping[str, Any] | None = None,
        positions: Positions | None = None,
        encoder: Literal["visionzip"] | None = None,
        full_depth: float = 0.0,
        dropped: Dropped | None = None,
    ) -> Method:
        """The method that a job's settings (`MethodConfig`) mean for a decoder of `layers` layers.

        What is not given is the selector's default; the encoder step and the uniform layout have defaults of their own.

        Raises:
            ConfigError: the selector or one of its settings does not exist, a prune point lies beyond the last layer,
                the prune points cannot meet the retention, or two settings contradict each other. Names the field.
        """
        defaults = selector_class(selector).full_depth_settings if full_depth else {}
        chosen = make_selector(selector, {**defaults, **(settings or {})})
        if layout == "uniform" and (tuple(prune_points or (0,)) != (0,) or positions == "original"):
            raise ConfigError("method.layout", "uniform needs method.prune_points [0] and method.positions compact")
        if retention is None and tokens is None and keep is None:
            retention = DEFAULT_RETENTION
        shape = _default_shape(chosen, layout, encoder, full_depth)
        # A fixed number of tokens may be any small share of an image's, as retention 0 would be.
        points = tuple(prune_points or shape.points_for(layers, retention if tokens is None else 0.0))
        if points[-1] >= layers:
            raise ConfigError("method.prune_points", f"{points[-1]} is beyond the model's last layer, {layers - 1}")
        shares = tuple(weights or shape.weights_for(len(points)))
        if keep is None and len(shares) != len(points):
            raise ConfigError(
                "method.weights",
                f"{len(points)} prune points need as many weights; there are defaults for {len(shares)}",
            )
        try:
            schedule = _schedule(layers, points, retention, tokens, keep, shares, round(full_depth * layers))
        except ValueError as error:
            raise ConfigError("method.retention", str(error)) from None
        compact = layout == "uniform" or encoder is not None
        return cls(
            schedule,
            chosen,
            positions or ("compact" if compact else chosen.positions),
            VisionZip() if encoder == "visionzip" else None,
            dropped or "lost",
        )

    @classmethod
    def unpruned(cls, layers: int, positions: Positions = "compact") -> Method:
        """The method that drops nothing."""
        return cls(Schedule(layers, (), retention=1.0, weights=()), KnownIndices(), positions)

    @property
    def layout(self) -> Layout:
        """uniform: every layer holds the same rows at consecutive positions, as other engines expect; else ragged."""
        return "uniform" if self.schedule.prune_points == (0,) and self.positions == "compact" else "ragged"

    def require_selector(self) -> None:
        """Check that the method can select, before a model is loaded.

        Raises:
            ConfigError: its selector is of a module that cannot be imported here.
        """
        if isinstance(self.selector, AbsentSelector):
            raise ConfigError("method.selector", self.selector.reason)

    def to_dict(self) -> dict[str, Any]:
        """The method as plain JSON values, which `from_dict` turns into an equal method."""
        schedule = self.schedule
        return {
            "selector": name_of(self.selector),
            "settings": _plain_settings(self.selector),
            "encoder": None if self.encoder_reducer is None else "visionzip",
            "encoder_settings": None if self.encoder_reducer is None else self.encoder_reducer.settings,
            "layout": self.layout,
            "positions": self.positions,
            "dropped": self.dropped,
            "layers": schedule.layers,
            "prune_points": list(schedule.prune_points),
            "full_layers": schedule.full_layers,
            "retention": schedule.retention,
            "tokens": schedule.tokens,
            "keep": None if schedule.keep is None else list(schedule.keep),
            "weights": None if schedule.keep is not None else list(schedule.weights),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Method:
        """The method that `to_dict` wrote.

        A selector that does not exist here does not keep anybody from reading a cache: an `AbsentSelector` takes its
        place, and selecting is what raises (`require_selector`).
        """
        reducer = stored["encoder_settings"]
        return cls(
            _schedule(*(stored[name] for name in SCHEDULE_ENTRIES)),
            _stored_selector(stored["selector"], stored["settings"]),
            stored["positions"],
            None if reducer is None else VisionZip(**reducer),
            stored["dropped"],
        )


def _schedule(
    layers: int,
    prune_points: Sequence[int],
    retention: float | None,
    tokens: float | None,
    keep: Sequence[int] | None,
    weights: Sequence[float],
    full_layers: int,
) -> Schedule:
    """A schedule from a job's or a manifest's values; weights mean nothing beside fixed counts."""
    if keep is not None:
        return Schedule(layers, tuple(prune_points), keep=tuple(keep), full_layers=full_layers)
    return Schedule(layers, tuple(prune_points), retention, tokens, None, tuple(weights), full_layers)


def _default_shape(selector: Selector, layout: Layout, encoder: str | None, full_depth: float) -> ScheduleShape:
    if layout == "uniform":
        return UNIFORM_SHAPE
    if encoder:
        return ENCODER_SHAPE
    return selector.shape_at(full_depth)


def _plain_settings(selector: Selector) -> dict[str, Any]:
    if isinstance(selector, AbsentSelector):
        return selector.settings
    return settings_model(type(selector)).model_validate(selector.settings).model_dump(mode="json")


def _stored_selector(name: str, settings: Mapping[str, Any]) -> Selector:
    try:
        return make_selector(name, settings)
    except ConfigError as error:
        return AbsentSelector(named=name, stored=dict(settings), reason=str(error))
