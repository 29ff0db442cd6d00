"""What restoring costs and what codecs are worth, as it was measured: an estimate without a device goes by it.

Restoring is from host memory to keys and values on the device (docs/measured/reading.md): for each codec, LLaVA-NeXT's
shapes on Mistral (40 MB of 16 bit a sample) and on Vicuna (178 MB) give what a sample costs whatever its size, and what
its bytes cost. Quality is that of docs/measured/codecs.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.codecs.integer import Integer

MEASURED_ON = "one H200 with 16 CPU cores, batches of 32, 30 November 2026"
Quality = Literal["exact", "close", "poor"]


@dataclass(frozen=True)
class RestoreRate:
    """Milliseconds of a sample, and of each GB that its keys and values have in 16 bit."""

    sample_ms: float
    gb_ms: float

    def seconds(self, plain_bytes: float) -> float:
        """Of a sample of so many bytes in 16 bit."""
        return (self.sample_ms + self.gb_ms * plain_bytes / 1e9) / 1e3


RATES = {
    "transform": RestoreRate(0.52, 7.2),
    "int4": RestoreRate(0.57, 8.3),
    "int8": RestoreRate(0.69, 11.5),
    "raw": RestoreRate(0.10, 19.5),
}
"""Mistral's and Vicuna's samples took, in ms: transform 0.81 and 1.80, int4 0.91 and 2.06, int8 1.16 and 2.74, raw 0.89
and 3.58.
"""
DECODE_SHARE = 0.6
"""What decoding a full batch reaches of the prefill's speed in arithmetic: a step of 256 sequences took 10.5 ms."""


def rate_of(codec: Codec | None) -> RestoreRate:
    """Of a codec; a codec that was not measured counts as the slowest of its kind, one left open as a transform."""
    if codec is None:
        return RATES["transform"]
    return RATES.get(codec.name) or RATES["int8" if isinstance(codec, Integer) else "raw"]


def quality_of(codec: Codec | None) -> Quality:
    """How close answers behind a codec are to those without: `exact` bit for bit; `poor` where some in a hundred are
    others. 2 bits changed 2.3 to 4.5 % of a small model's answers, and raised a language model's perplexity by 25 %.
    """
    if isinstance(codec, Integer):
        return "poor" if min(codec.settings.keys, codec.settings.values) < 4 else "close"
    return "exact" if codec is not None and codec.settings.name == "raw" else "close"
