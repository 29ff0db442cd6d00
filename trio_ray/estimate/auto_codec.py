"""The codec that `cache.codec: auto` will choose in a job that is only estimated: calibrated here, or assumed."""

from __future__ import annotations

from dataclasses import dataclass

from trio_ray.calibration.auto import MIN_SAMPLES, Uncalibrated, calibrate_on
from trio_ray.config import JobConfig
from trio_ray.estimate.workload import Workload
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.codecs.raw import Raw, RawSpec
from trio_ray.model.replica import Replica
from trio_ray.precompute.codec_choice import CodecChoice

ASSUMED_RATIO = 8.0
"""Times smaller than 16 bit: what is reached on a language model of general use within half a point."""


@dataclass(frozen=True)
class OwnCodec:
    """The codec of an estimated job, if it is known.

    Attributes:
        codec: of the job.
        note: what stands for `auto`.
        times_smaller: than 16 bit prefixes are, measured or assumed; None where nobody has to: the codec says it.
    """

    codec: Codec | None
    note: str | None
    times_smaller: float | None = None


def calibrated_here(config: JobConfig, replica: Replica, workload: Workload) -> OwnCodec:
    """Fit a basis to the drawn samples with the job's model. The codec is raw if the job would choose that, or if too
    few samples were drawn.
    """
    if config.cache.scope == "image":
        return _raw("with scope image")
    if config.model.matmul != "dtype":  # calibration needs gradients
        replica = Replica.load(config.model.model_copy(update={"matmul": "dtype"}), config.prompt)
    made = calibrate_on(workload.samples, config, replica, {})
    if isinstance(made, Uncalibrated):
        return _raw(f"because {made.reason} (--samples draws more)")
    choice = CodecChoice.of(made)
    return OwnCodec(made.codec, f"auto, calibrated on the drawn samples: {choice.why}", choice.times_smaller)


def assumed(config: JobConfig, samples: int) -> OwnCodec:
    """Choose without a model: raw if the job would choose that, otherwise an assumed ratio.

    Args:
        config: the job.
        samples: good ones of the corpus.
    """
    if config.cache.scope == "image":
        return _raw("with scope image")
    if samples < MIN_SAMPLES:
        return _raw(f"because the corpus has fewer than {MIN_SAMPLES} samples")
    return OwnCodec(
        None,
        f"auto is assumed to make prefixes {ASSUMED_RATIO:g} times smaller than in 16 bit; the job calibrates it as it "
        "begins, and --measure does so here",
        ASSUMED_RATIO,
    )


def _raw(why: str) -> OwnCodec:
    return OwnCodec(Raw(RawSpec()), f"auto is raw {why}")
