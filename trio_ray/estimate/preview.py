"""What a job would do and take, before anything is written: its plan beside an estimate of what is left of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from trio_ray.cluster.progress import NoProgress, Phase, Progress
from trio_ray.cluster.session import gpus_per_replica
from trio_ray.config import JobConfig
from trio_ray.estimate.choices import Use
from trio_ray.estimate.estimate import Estimate, EstimateSettings, make_estimate
from trio_ray.estimate.prices import Prices
from trio_ray.estimate.report import duration
from trio_ray.precompute.plan import JobPlan, preview_job
from trio_ray.study import shown_bytes

DRAWN = 100
"""Samples of the corpus that are looked at."""

MEASURED_S = 2.0

GPU_FLOP_PER_S = 4e14
"""What a replica on a GPU is taken to reach: an H100 or H200 in bfloat16 at 40 % of its peak."""

LOST_SHOWN = 10


@dataclass(frozen=True)
class Preview:
    """What a job would do.

    Attributes:
        config: the job.
        plan: the work; of a new cache the manifest in it is made up.
        is_new: whether the cache would be made.
        on_gpu: whether the hours are those of an assumed GPU, and not measured here.
        estimate: of the job as if nothing of it were done; None where nothing is left.
    """

    config: JobConfig
    plan: JobPlan
    is_new: bool
    on_gpu: bool
    estimate: Estimate | None

    @property
    def share_left(self) -> float:
        """Of the input's bytes, those that are left to be worked on."""
        plan = self.plan
        shards = [task.shard for task in plan.tasks]
        everything = [*shards, *plan.complete]
        of_file = Counter(shard.uri for shard in everything)
        total = sum(shard.size / of_file[shard.uri] for shard in everything)
        return sum(shard.size / of_file[shard.uri] for shard in shards) / total if total else 0.0

    def __str__(self) -> str:
        """For people."""
        plan = self.plan
        lines = [
            f"would {'make the new cache' if self.is_new else 'go on with the cache'} {self.config.output}",
            f"shards: {plan.shards}, of which {len(plan.complete)} are complete and {len(plan.tasks)} have work left",
        ]
        for shard, reason in plan.lost[:LOST_SHOWN]:
            lines.append(f"would FAIL {shard.uri}: {reason}")
        if len(plan.lost) > LOST_SHOWN:
            lines.append(f"would FAIL {len(plan.lost) - LOST_SHOWN} shards more")
        lines += self._expected() if self.estimate is not None else ["nothing is left to do"]
        return "\n".join([*lines, "nothing was written"])

    def _expected(self) -> list[str]:
        assert self.estimate is not None
        corpus, job, limit = self.estimate.corpus, self.estimate.job, self.config.pipeline.limit
        left = self.share_left
        if limit is not None and corpus.samples:
            left = min(left, limit / corpus.samples)
        bad = "".join(f", {count} {reason}" for reason, count in corpus.bad_drawn.items())
        how = (
            f"at {GPU_FLOP_PER_S / 1e12:g} TFLOP/s a GPU, which is assumed; trio-ray estimate takes other speeds"
            if self.on_gpu
            else "as measured on this machine, without loading"
        )
        lines = [
            f"expected: about {left * corpus.samples:,.0f} samples and {shown_bytes(left * job.total_bytes)}, "
            f"{left * job.gpu_hours:.2g} hours of replicas, {duration(left * job.wall_s)} on {job.replicas} of them "
            f"({how})",
            f"of {corpus.drawn_samples} samples that were looked at {corpus.bad_share:.1%} are bad{bad}",
        ]
        if self.estimate.codec_note is not None:
            lines.append(f"codec: {self.estimate.codec_note}")
        return lines


def preview(config: JobConfig, progress: Progress | None = None) -> Preview:
    """Check and plan a job, and estimate what is left of it. Nothing is written.

    Raises:
        ConfigError: it cannot be run.
        IdentityMismatch: its output is a cache of other settings.
    """
    progress = progress or NoProgress()
    progress.begin(Phase("checking"))
    on_gpu = gpus_per_replica(config.replicas.gpus) > 0
    plan, is_new = preview_job(config, on_gpu)
    if not plan.tasks:
        return Preview(config, plan, is_new, on_gpu, None)
    settings = EstimateSettings(
        config=config.model_copy(update={"model": plan.model}),
        samples=DRAWN,
        codecs={},
        flop_per_s=GPU_FLOP_PER_S if on_gpu else None,
        seconds=MEASURED_S,
        replicas=config.replicas.max,
        bandwidth_gb_per_s=None,
        prices=Prices(None, None, 1.0),
        use=Use(),
    )
    estimate = make_estimate(settings, lambda what: progress.begin(Phase(what)))
    return Preview(config, plan, is_new, on_gpu, estimate)
