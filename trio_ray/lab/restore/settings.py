"""What a benchmark of reading measures; light to import."""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("memory", "store", "decode", "answers", "questions", "cpu", "core")
CODECS = ("transform", "int4", "int8", "raw")
SHAPES = ("mistral-7b", "vicuna-7b")


@dataclass(frozen=True)
class RestoreSettings:
    """What to measure.

    Attributes:
        shapes: names of geometries and model shapes, measured one after the other.
        parts: of `PARTS`.
        codecs: of `CODECS`; transform is fitted so that its containers are `ratio` times smaller than 16 bit.
        samples: different prefixes, and images of the prefill.
        rounds: each contestant's turns.
        threads: host threads that fetch and check.
        ratio: see `codecs`.
        store_mb: of a codec's cache in the parts that read one, 1e6 bytes; several batches, since the first one
            is waited for.
        token_budget: prompt rows of a batch of the prefill that restoring is compared with.
        seed: of weights and workload.
    """

    shapes: tuple[str, ...] = SHAPES
    parts: tuple[str, ...] = PARTS
    codecs: tuple[str, ...] = CODECS
    samples: int = 32
    rounds: int = 5
    threads: int = 16
    ratio: float = 10.0
    store_mb: int = 4000
    token_budget: int = 65536
    seed: int = 0
