"""What the drawn samples mean for the model: rows, image tokens, and tiles that really pass the vision tower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from trio_ray.config import JobConfig
from trio_ray.errors import ConfigError
from trio_ray.estimate.draw import Item
from trio_ray.method.schedule import Schedule
from trio_ray.model.checkpoint import Checkpoint
from trio_ray.model.prepare import PreparedImage, PreparedSample, SamplePreparer
from trio_ray.source.sample import BadSample


@dataclass(frozen=True)
class Workload:
    """The drawn samples as the model gets them.

    Attributes:
        samples: the good ones, in the order of the corpus.
        bad: how many are bad, by reason.
        passed_over: rows without images that the job passes over silently (`source.text_only: skip`).
        encoded_tiles: tiles that pass the vision tower for a sample, mean: an image that the sample before has too is
            not encoded again.
        encoded_images: the same in images.
    """

    samples: tuple[PreparedSample, ...]
    bad: dict[str, int]
    passed_over: int
    encoded_tiles: float
    encoded_images: float

    @property
    def bad_share(self) -> float:
        """Share of bad ones among those that were drawn and are not passed over."""
        bad = sum(self.bad.values())
        return bad / (bad + len(self.samples))

    @property
    def stored_share(self) -> float:
        """Share of good ones among all that were drawn."""
        return len(self.samples) / (len(self.samples) + sum(self.bad.values()) + self.passed_over)

    @property
    def rows(self) -> float:
        """Rows of the unpruned prompt, mean."""
        return fmean(sample.rows for sample in self.samples)

    @property
    def image_tokens(self) -> float:
        """Image tokens of a sample, mean."""
        return fmean(sample.image_tokens for sample in self.samples)


def make_preparer(config: JobConfig, checkpoint: Checkpoint, schedule: Schedule) -> SamplePreparer:
    """The CPU side of a job's replicas, without loading the model's weights; true answers are left out."""
    return SamplePreparer(
        checkpoint.tiler,
        checkpoint.writer,
        checkpoint.config.image_token_id,
        checkpoint.context,
        config.source.max_pixels,
        config.cache.selected_under,
        schedule=schedule,
    )


def prepare_workload(runs: Iterable[Sequence[Item]], preparer: SamplePreparer) -> Workload:
    """Prepare what was drawn; a run begins with an image that is new.

    Raises:
        ConfigError: no sample of them is good; names `input` and the reasons.
    """
    samples: list[PreparedSample] = []
    bad: Counter[str] = Counter()
    passed_over = 0
    encoded: list[list[PreparedImage]] = []
    for run in runs:
        before: set[str] = set()
        for item in run:
            outcome = preparer.prepare(item)
            if isinstance(outcome, BadSample) and outcome.silent:
                passed_over += 1
                continue
            if isinstance(outcome, BadSample):
                bad[outcome.reason.value] += 1
                continue
            samples.append(outcome)
            encoded.append([image for image in outcome.images if image.hash not in before])
            before = {image.hash for image in outcome.images}
    if not samples:
        reasons = [f"{count} {reason}" for reason, count in bad.most_common()]
        reasons += [f"{passed_over} without an image"] if passed_over else []
        raise ConfigError("input", f"not one of the samples that were drawn is good: {', '.join(reasons)}")
    return Workload(
        tuple(samples),
        dict(bad.most_common()),
        passed_over,
        fmean(sum(len(image.tiles) for image in images) for images in encoded),
        fmean(len(images) for images in encoded),
    )
