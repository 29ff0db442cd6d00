"""How many image tokens are left after each prune point, solved from a wanted retention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

DEFAULT_RETENTION = 0.111


@dataclass(frozen=True)
class ScheduleShape:
    """Where a method prunes by default, and in which proportions; other depths and budgets are scaled from it.

    Attributes:
        layers: depth of the decoder that the numbers are for.
        prune_points: layers before which tokens are dropped, ascending.
        weights: relative number of tokens that each prune point keeps.
    """

    layers: int
    prune_points: tuple[int, ...]
    weights: tuple[float, ...]

    def points_for(self, layers: int, retention: float | None = None) -> tuple[int, ...]:
        """The prune points of a decoder of `layers` layers, at least one layer apart.

        A first point behind layer 0 moves to 0 where the layers before it would use up `retention` alone. So it does
        at retention 0, which stands for a fixed number of tokens: that may be any small share of an image's tokens.
        """
        points: list[int] = []
        for point in self.prune_points:
            earliest = points[-1] + 1 if points else min(1, point)
            points.append(max(earliest, round(point * layers / self.layers)))
        if retention is not None and retention <= points[0] / layers:
            points[0] = 0
        return tuple(point for point in points if point < layers)

    def weights_for(self, points: int) -> tuple[float, ...]:
        """The weights of so many prune points: the last ones, since the last prunes are the ones that stay."""
        return self.weights[-points:]


AUTHORS_SHAPE = ScheduleShape(32, prune_points=(1, 10, 15), weights=(92, 54, 22))
"""LLaVA-1.5 at 64 of 576 tokens (arXiv 2602.04657, released code)."""

ENCODER_SHAPE = ScheduleShape(32, prune_points=(0, 16), weights=(96, 32))
"""The same budget where the vision side does the first step: 96 before layer 0, 32 before layer 16 (their README)."""

UNIFORM_SHAPE = ScheduleShape(1, prune_points=(0,), weights=(1,))
"""One prune before layer 0, so that all layers hold the same rows."""


@dataclass(frozen=True)
class Schedule:
    """A budget over the depth of a decoder.

    The budget is the mean, over all decoder layers, of the image tokens that a layer holds. Layers before the first
    prune point hold all of them.

    Attributes:
        layers: decoder layers of the model.
        prune_points: ascending; before the layer of this number runs, tokens are dropped.
        retention: share of an image's own tokens, or None.
        tokens: fixed mean number of tokens, or None.
        keep: fixed number at each prune point, or None. Exactly one of the three is given.
        weights: relative number kept at each prune point where `keep` is solved.
        full_layers: the first layers, this many, run on all image tokens, and only what is stored of them is pruned.
    """

    layers: int
    prune_points: tuple[int, ...]
    retention: float | None = None
    tokens: float | None = None
    keep: tuple[int, ...] | None = None
    weights: tuple[float, ...] = AUTHORS_SHAPE.weights
    full_layers: int = 0

    def __post_init__(self) -> None:
        points = self.prune_points
        if list(points) != sorted(set(points)) or (points and not 0 <= points[0] <= points[-1] < self.layers):
            raise ValueError(f"prune points {points} must ascend within 0..{self.layers - 1}")
        if not 0 <= self.full_layers <= self.layers:
            raise ValueError(f"full_layers {self.full_layers} must lie within 0..{self.layers}")
        if sum(value is not None for value in (self.retention, self.tokens, self.keep)) != 1:
            raise ValueError("give exactly one of retention, tokens, keep")
        if self.keep is not None and len(self.keep) != len(points):
            raise ValueError(f"keep has {len(self.keep)} entries for {len(points)} prune points")
        if self.keep is None and len(self.weights) != len(points):
            raise ValueError(f"weights has {len(self.weights)} entries for {len(points)} prune points")
        if self.keep is None and any(weight <= 0 for weight in self.weights):
            raise ValueError("weights must be positive")
        if self.keep is None and list(self.weights) != sorted(self.weights, reverse=True):
            raise ValueError("weights must not grow: a token once dropped does not come back")
        if self.retention is not None and self.retention < 1 and self.retention <= self.floor:
            raise ValueError(
                f"retention {self.retention} cannot be met: the {points[0] if points else self.layers} layers before "
                f"the first prune point hold every token, which alone is {self.floor:.3g}"
            )

    @property
    def floor(self) -> float:
        """Retention that the layers before the first prune point already use up."""
        return (self.prune_points[0] if self.prune_points else self.layers) / self.layers

    @property
    def spans(self) -> tuple[int, ...]:
        """Number of layers that run on what each prune point keeps."""
        edges = (*self.prune_points, self.layers)
        return tuple(stop - start for start, stop in pairwise(edges))

    def has_room_for(self, image_tokens: int) -> bool:
        """Whether a fixed budget is more than the layers before the first prune point use up for so many tokens.

        If not, all that it leaves behind that point is the one token that always stays. Other budgets are met anyway.
        """
        return self.tokens is None or self.tokens >= image_tokens or self.tokens > self.floor * image_tokens

    def counts(self, image_tokens: int) -> tuple[int, ...]:
        """Tokens kept at each prune point, of an image (or several) that really has `image_tokens`.

        Each count is rounded to the nearest whole token, never grows, and is at least 1 where there is a token.
        """
        if self.keep is not None:
            return _descending(self.keep, image_tokens)
        wanted = self.tokens if self.tokens is not None else (self.retention or 0.0) * image_tokens
        rows = wanted * self.layers - image_tokens * (self.layers - sum(self.spans))
        return _descending([max(1, round(k)) for k in self._share(rows, image_tokens)], image_tokens)

    def _share(self, rows: float, image_tokens: int) -> list[float]:
        """Spread `rows` (layers times tokens) by `weights`; what a prune point cannot use goes to the later ones."""
        shares: list[float] = []
        for index, (span, weight) in enumerate(zip(self.spans, self.weights, strict=True)):
            rest = sum(s * w for s, w in zip(self.spans[index:], self.weights[index:], strict=True))
            share = min(float(image_tokens), max(0.0, rows * weight / rest))
            shares.append(share)
            rows -= share * span
        return shares

    def mean_tokens(self, image_tokens: int) -> float:
        """Mean number of image tokens that a layer holds."""
        held = sum(span * kept for span, kept in zip(self.spans, self.counts(image_tokens), strict=True))
        return (image_tokens * (self.layers - sum(self.spans)) + held) / self.layers


def _descending(counts: Sequence[int], image_tokens: int) -> tuple[int, ...]:
    """Cap each count by the one before it, the first by `image_tokens`."""
    capped, bound = [], image_tokens
    for count in counts:
        bound = min(bound, count)
        capped.append(bound)
    return tuple(capped)
