"""What a person is told at the end of a run: what was stored, what was not, for which reasons, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FAILED_SHOWN = 20
"""Input that is not in the cache is named so often; a job of a million shards may have lost its whole bucket."""


@dataclass
class JobSummary:
    """What a run did, and what is in its cache now.

    `chosen` says what this run chose where the settings left it open, and why. `failed` maps input that is not in the
    cache (a URI, and rows of a split file) to the reason. `reasons` counts the bad samples of this run, `passed_over`
    the rows without images that the user does not want (`source.text_only: skip`), and `without_targets` the stored
    samples whose answer got no targets. `cache_stored` and `cache_quarantined` count the samples of the whole cache
    at the end of the run; they are None until then.
    """

    output: str
    run_id: str
    shards: int
    shards_before: int
    stored: int = 0
    quarantined: int = 0
    parts: int = 0
    bytes: int = 0
    without_targets: int = 0
    seconds: float = 0.0
    chosen: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    passed_over: int = 0
    cache_stored: int | None = None
    cache_quarantined: int | None = None

    @property
    def ok(self) -> bool:
        """Whether all input is in the cache or in quarantine, and anything at all is in the cache."""
        return not self.failed and self.cache_stored != 0

    def __str__(self) -> str:
        """A few lines for the end of a run."""
        rate = (self.stored + self.quarantined) / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.output}: {self.stored} samples stored, {self.quarantined} quarantined, in {self.parts} parts, "
            f"{self.bytes:,} bytes, {self.seconds:.1f} s ({rate:.1f} samples/s)",
            f"shards: {self.shards}, of which {self.shards_before} were complete before",
        ]
        if self.cache_stored is not None:
            lines.append(f"the cache holds {self.cache_stored} samples, and {self.cache_quarantined} in quarantine")
        if self.reasons:
            lines.append(f"quarantined: {counted(self.reasons)}; see trio-ray inspect {self.output} --quarantine")
        if self.passed_over:
            lines.append(f"passed over: {self.passed_over} rows without images")
        if self.without_targets:
            lines.append(
                f"no targets for {self.without_targets} samples with an answer: the model's context is too short for "
                "prompt and answer, or its template cannot write the answer behind the prompt"
            )
        lines += [f"{name}: {why}" for name, why in self.chosen.items()]
        if self.shards == self.shards_before:
            lines.append("nothing was left to do")
        if self.cache_stored == 0:
            lines.append("NOTHING IS STORED: not one sample of the input is in the cache")
        lines += self._failures()
        return "\n".join(lines)

    def _failures(self) -> list[str]:
        lines = [f"FAILED {uri}: {reason}" for uri, reason in list(self.failed.items())[:FAILED_SHOWN]]
        if len(self.failed) > FAILED_SHOWN:
            lines.append(f"FAILED: {len(self.failed) - FAILED_SHOWN} more; see trio-ray inspect {self.output} --failed")
        return lines


def counted(reasons: Mapping[str, int]) -> str:
    """Reasons with their counts, the commonest first: `25 text_missing, 1 image_empty`."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)
