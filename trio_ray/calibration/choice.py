"""How fine a basis must be: the coarsest step at which answers, measured on prefixes held back from the fit, move by no
more than is wanted.

The second-order estimate from the gradients (`Calibration.divergence`) says where to begin; by how much it is off, and
which way, depends on the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trio_ray.calibration.calibrate import DEFAULT_RANK, FINEST, Answering, Calibration, calibrate, largest_step
from trio_ray.calibration.corpus import DrawnPrefix
from trio_ray.calibration.report import HeldOut, measure_held_out, stored_ratio
from trio_ray.kv.codecs.transform import Transform, TransformSpec
from trio_ray.kv.codecs.transform_basis import read_basis, write_basis
from trio_ray.kv.container import checksum

DEFAULT_DIVERGENCE = 0.003
"""How far an answer token's distribution may move: nats, the mean over samples."""

HELD_OUT = 5
"""One prefix in this many is held back from the fit."""

TRIALS = 8
"""Upper bound of the steps that are tried."""

NEAR = 0.5
"""A step is coarse enough when it uses up this share of the divergence that is allowed. Twice that divergence would
save only an eighth of the bytes, and a mean over few samples is no more exact than that: searching on would choose by
chance.
"""

AIM = 0.75
"""The share of the allowed divergence that the next trial aims at."""

REACH = 64.0
"""Steps that are finer or coarser than the first one by more than this factor are not tried: finer ones would not fit
into the integers.
"""

GAP = 1.1
"""The search ends when a step that fits and one that does not differ by less than this factor."""


@dataclass(frozen=True)
class FittedCodec:
    """A codec whose step is chosen.

    Attributes:
        codec: with its basis.
        basis: the basis as bytes, whose hash the codec's settings name.
        step: of the basis.
        measured: on the prefixes held back.
    """

    codec: Transform
    basis: bytes
    step: float
    measured: HeldOut


@dataclass(frozen=True)
class Fitted:
    """A calibration, and the prefixes that were held back from it.

    Attributes:
        model: what made the prefixes.
        calibration: all but a step.
        held_out: prefixes that it has not seen.
    """

    model: Answering
    calibration: Calibration
    held_out: Sequence[DrawnPrefix]

    def choose(self, divergence: float, parameters: Mapping[str, Any] | None = None) -> FittedCodec | None:
        """About the smallest codec that moves the first answer token's distribution by at most `divergence` nats: the
        mean over the prefixes held back, plus two standard errors. None if not even a fine step reaches that.

        Args:
            divergence: wanted.
            parameters: of the codec, beside its basis.
        """
        best: FittedCodec | None = None

        def measure(step: float) -> float:
            nonlocal best
            found = self.at(step, parameters)
            if found.measured.most <= divergence and (best is None or step > best.step):
                best = found  # the others are not kept: of a large model each is a gigabyte
            return found.measured.most

        coarsest_step(measure, divergence, self._estimate(divergence))
        return best

    def at(self, step: float, parameters: Mapping[str, Any] | None = None) -> FittedCodec:
        """The codec with a given step."""
        codec, data = self._codec(step, parameters or {})
        measured = measure_held_out(self.model, codec, self.held_out)
        # Another one, which holds no matrices on the device: those of a large model take gigabytes.
        return FittedCodec(Transform(codec.settings, read_basis(data)), data, step, measured)

    def ratio(self, step: float) -> float:
        """How many times smaller than 16 bit the held-back prefixes become with a given step."""
        return stored_ratio(self.model, self._codec(step, {})[0], self.held_out)

    def _codec(self, step: float, parameters: Mapping[str, Any]) -> tuple[Transform, bytes]:
        basis = self.calibration.basis(step)
        data = write_basis(basis)
        return Transform(TransformSpec(**{**parameters, "name": "transform", "basis": checksum(data)}), basis), data

    def _estimate(self, divergence: float) -> float:
        """The step that is expected to cause `divergence`, or about the least that so few components can reach."""
        expected = self.calibration.divergence
        reachable = max(divergence, 1.2 * expected(FINEST))
        return largest_step(lambda step: expected(step) <= reachable) or FINEST


def fit(
    model: Answering,
    drawn: Sequence[DrawnPrefix],
    fingerprint: dict[str, str],
    notes: dict[str, Any],
    rank: int = DEFAULT_RANK,
    group_layers: int | None = None,
    on_sample: Callable[[], None] = lambda: None,
) -> Fitted:
    """Hold back some prefixes, and calibrate on the others.

    Args:
        model: made the prefixes.
        drawn: three at least.
        fingerprint: of the model.
        notes, rank, group_layers, on_sample: see `calibrate`.
    """
    seen, rest = hold_out(drawn)
    prefixes, tails = [item.prefix for item in seen], [[item.last_token] for item in seen]
    notes = {**notes, "samples": len(seen)}
    return Fitted(model, calibrate(model, prefixes, tails, fingerprint, notes, rank, group_layers, on_sample), rest)


def hold_out(drawn: Sequence[DrawnPrefix]) -> tuple[list[DrawnPrefix], list[DrawnPrefix]]:
    """Prefixes to fit to, and from the end of the list one of `HELD_OUT`, two at least, to measure on.

    None of these is about an image that one of the others is about, too: it would look better than a new one. Where
    that leaves too little of either, because nearly all are about the same images, they are only held back.
    """
    count = max(2, len(drawn) // HELD_OUT)
    images: set[str] = set()
    rest: list[DrawnPrefix] = []
    for item in reversed(drawn):
        if len(rest) >= count:
            break
        images |= item.about
        rest = [other for other in drawn if other.about & images]
    seen = [item for item in drawn if not item.about & images]
    if not rest or len(seen) < len(drawn) // 2:
        return list(drawn[:-count]), list(drawn[-count:])
    return seen, rest


def coarsest_step(measure: Callable[[float], float], wanted: float, start: float) -> float | None:
    """The coarsest step, nearly, of those tried at which `measure` is at most `wanted`.

    What is measured grows about with the square of the step, which says where to look next; between a step that fits
    and one that does not, interpolation does. `measure` is called `TRIALS` times at most.

    Args:
        measure: nats of a step.
        wanted: nats.
        start: where to begin.

    Returns:
        The step; None where the finest that is tried, `start / REACH`, does not fit either.
    """
    fits: tuple[float, float] | None = None
    fails: tuple[float, float] | None = None
    step = start
    for trial in range(TRIALS):
        value = max(measure(step), 1e-12)
        if value <= wanted:
            fits = (step, value)
        else:
            fails = (step, value)
        if fits is None and fails is not None:
            if fails[0] <= start / REACH:
                return None
            factor = min(0.7, (AIM * wanted / fails[1]) ** 0.5)
            # From the middle on it is the finest that says whether anything fits.
            step = start / REACH if trial >= TRIALS // 2 - 1 else max(start / REACH, step * factor)
        elif fails is None and fits is not None:
            if fits[1] >= NEAR * wanted or fits[0] >= start * REACH:
                break
            step = min(start * REACH, step * min(8.0, max(1.2, (AIM * wanted / fits[1]) ** 0.5)))
        elif fits is not None and fails is not None:
            if fits[1] >= NEAR * wanted or fails[0] <= GAP * fits[0]:
                break
            step = _between(fits, fails, AIM * wanted)
    return None if fits is None else fits[0]


def _between(low: tuple[float, float], high: tuple[float, float], aim: float) -> float:
    """The step at which a power law through two measured steps has `aim`, kept away from both of them."""
    share = math.log(aim / low[1]) / math.log(high[1] / low[1])
    return float(low[0] * (high[0] / low[0]) ** min(0.85, max(0.15, share)))
