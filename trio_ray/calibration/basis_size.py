"""The upper bounds of a basis, which a command line gives beside a codec's name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from trio_ray.calibration.calibrate import DEFAULT_RANK


@dataclass(frozen=True)
class BasisSize:
    """Limits that bound the work of a fit and the bytes of a basis.

    Attributes:
        rank: most components of a group of layers and kind of rows.
        group_layers: most layers that are transformed together; None leaves it to whoever fits.
    """

    rank: int = DEFAULT_RANK
    group_layers: int | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "group_layers"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} {value!r} must be a whole number of at least 1")

    @classmethod
    def taken_from(cls, spec: dict[str, Any]) -> Self:
        """Take the limits out of a codec's settings, which lose them. Raises `ValueError` or `TypeError` if one is not
        valid.
        """
        given: dict[str, Any] = {}
        for field in fields(cls):
            if field.name in spec:
                value = spec.pop(field.name)
                # YAML takes 1e-2 for text.
                given[field.name] = float(value) if field.type == "float" else value
        return cls(**given)
