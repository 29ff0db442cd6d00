"""Seconds of one replica for one sample, counted for a GPU that is given by its speed."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from trio_ray.estimate.restore_rates import DECODE_SHARE
from trio_ray.estimate.workload import Workload
from trio_ray.method.schedule import Schedule
from trio_ray.model.flops import FlopCounter
from trio_ray.model.prepare import PreparedSample


@dataclass(frozen=True)
class SampleTimes:
    """Seconds of a replica for one sample, means over the drawn ones.

    Attributes:
        source: `given` for counted FLOP and a given speed, `measured` for this machine.
        precompute_s: all that the job does for it but the upload.
        pruned_s: a pruned prefill alone, vision included: what recomputing takes.
        unpruned_s: an unpruned prefill, vision included.
        known_s: a pruned prefill whose kept tokens are known, vision included: what level indices leaves to do.
        embeds_s: a prefill of the retained input embeddings: what level embeds leaves to do.
        load_s: until the model is loaded, once for each replica; None where it was not measured.
        token_s: of one more token of its answer, among as many sequences as decode well together.
        cpu_s: of processor time that the job spends for a sample, all threads; None where it was not measured.
    """

    source: Literal["given", "measured"]
    precompute_s: float
    pruned_s: float
    unpruned_s: float
    known_s: float
    embeds_s: float
    token_s: float
    load_s: float | None = None
    cpu_s: float | None = None


@dataclass(frozen=True)
class SampleWork:
    """FLOP for one sample, means over the drawn ones (`trio_ray.model.flops`): vision is in all but `embeds` and
    `token`, which is one more token of its answer.
    """

    pruned: float
    unpruned: float
    known: float
    embeds: float
    token: float

    def times(self, flop_per_s: float) -> SampleTimes:
        """Seconds at a speed that is reached in practice: work / speed.

        Assumed is that a job hides all else behind the model: reading, decoding, coding, copying. `lab job` shows
        how far that is so on a cluster.
        """
        pruned, unpruned = self.pruned / flop_per_s, self.unpruned / flop_per_s
        token = self.token / (DECODE_SHARE * flop_per_s)
        return SampleTimes("given", pruned, pruned, unpruned, self.known / flop_per_s, self.embeds / flop_per_s, token)


def count_work(model_config: Any, workload: Workload, schedule: Schedule, supervised: int) -> SampleWork:
    """Count the FLOP of the drawn samples.

    Args:
        model_config: a `LlavaNextConfig`.
        workload: the drawn samples.
        schedule: what is kept where.
        supervised: rows of loss of the selector's score; 0 where it computes none.
    """
    counter = FlopCounter(model_config)
    vision = workload.encoded_tiles * counter.image(1)

    def mean(which: Schedule | None, rows: int) -> float:
        return fmean(counter.prompt(sample.rows, sample.image_tokens, which, rows).total for sample in workload.samples)

    embeds = fmean(counter.prompt(retained_rows(sample, schedule)).total for sample in workload.samples)
    token = counter.prompt(2).total - counter.prompt(1).total
    return SampleWork(
        vision + mean(schedule, supervised), vision + mean(None, 0), vision + mean(schedule, 0), embeds, token
    )


def retained_rows(sample: PreparedSample, schedule: Schedule) -> int:
    """Rows of a prompt behind the first prune point: text, and the image tokens kept there."""
    return sample.rows - sample.image_tokens + (schedule.counts(sample.image_tokens) or (sample.image_tokens,))[0]
