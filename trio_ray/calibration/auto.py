"""The codec of a cache whose settings leave it open (`cache.codec: auto`): a basis, where samples suffice for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice

from trio_ray.calibration.choice import DEFAULT_DIVERGENCE, FittedCodec, fit
from trio_ray.calibration.corpus import DrawnPrefix, draw_samples, prefixes_of
from trio_ray.calibration.report import stored_ratio
from trio_ray.config import JobConfig
from trio_ray.kv.codecs.raw import Raw, RawSpec
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica

SAMPLES = 320
"""Upper bound of the samples that are drawn. A fifth of them is held back."""

MIN_SAMPLES = 64

MOST_BYTES = 12 << 30
"""Bytes of keys and values that are held in host memory at once. A fit needs about three times as much. This is room
for 65 samples of LLaVA-NeXT-7B on Vicuna at 11 %, or 260 on Mistral. `MIN_SAMPLES` are drawn in any case.
"""


@dataclass(frozen=True)
class Uncalibrated:
    """The reason why there is no basis; it follows the words `raw, because`."""

    reason: str


OnStep = Callable[[str, int, int], None]
"""A callback that gets what is being done, how many samples are done, and how many there are."""


def _silent(what: str, done: int, total: int) -> None:
    pass


def calibrate_for(
    config: JobConfig, replica: Replica, fingerprint: dict[str, str], on_step: OnStep = _silent
) -> FittedCodec | Uncalibrated:
    """A codec fitted to samples of a job's input.

    Args:
        config: the job; `model.matmul` is `dtype`, as gradients are needed.
        replica: its model.
        fingerprint: of the model.
        on_step: is told how far it is.

    Raises:
        ConfigError: an input that the job cannot have either.
    """
    on_step("drawing samples", 0, SAMPLES)
    return calibrate_on(draw_samples(config, replica, SAMPLES), config, replica, fingerprint, on_step)


def calibrate_on(
    samples: Sequence[PreparedSample],
    config: JobConfig,
    replica: Replica,
    fingerprint: dict[str, str],
    on_step: OnStep = _silent,
) -> FittedCodec | Uncalibrated:
    """Fit a codec to samples that have been drawn already; see `calibrate_for` for the rest."""
    drawn = _as_many_as_fit(samples, config, replica, _counter("prefilling samples", len(samples), on_step))
    if len(drawn) < MIN_SAMPLES:
        return Uncalibrated(
            f"{len(drawn)} samples of the input could be used, and a basis is calibrated on {MIN_SAMPLES} or more"
        )
    on_sample = _counter("calibrating", len(drawn), on_step)
    fitted = fit(replica, drawn, fingerprint, {"input": list(config.input)}, on_sample=on_sample)
    on_step("measuring how much smaller prefixes get", 0, len(fitted.held_out))
    chosen = fitted.choose(DEFAULT_DIVERGENCE)
    if chosen is None:
        return Uncalibrated(
            f"no basis keeps the first answer token's distribution within {DEFAULT_DIVERGENCE} nats on "
            f"{len(fitted.held_out)} held-out samples"
        )
    if chosen.measured.ratio <= stored_ratio(replica, Raw(RawSpec()), fitted.held_out):
        return Uncalibrated("prefixes in the components of a basis would not be smaller")
    return chosen


def _counter(what: str, total: int, on_step: OnStep) -> Callable[[], None]:
    """A function that tells `on_step` about one more sample at each call."""
    on_step(what, 0, total)
    done = count(1)
    return lambda: on_step(what, next(done), total)


def _as_many_as_fit(
    samples: Sequence[PreparedSample], config: JobConfig, replica: Replica, on_sample: Callable[[], None]
) -> list[DrawnPrefix]:
    """Prefixes of the samples, as long as there is room for them."""
    if not samples:
        return []
    prefixes = prefixes_of(samples, config, replica, on_sample)
    first = next(prefixes, None)
    if first is None:
        return []
    return list(islice(chain([first], prefixes), max(MIN_SAMPLES, MOST_BYTES // first.prefix.kv_bytes)))
