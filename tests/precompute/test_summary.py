"""The summary of a job, for the person who started it."""

from __future__ import annotations

from trio_ray.precompute.job import JobSummary


def test_a_summary_names_what_is_not_in_the_cache() -> None:
    summary = JobSummary("s3://b/cache", "run", 5, 2, stored=7, quarantined=1, parts=3, bytes=12345, seconds=4.0)
    summary.failed["s3://corpus/x.jsonl rows 0..9"] = "cannot be read"
    text = str(summary)
    assert not summary.ok
    assert "7 samples stored, 1 quarantined, in 3 parts, 12,345 bytes, 4.0 s (2.0 samples/s)" in text
    assert "FAILED s3://corpus/x.jsonl rows 0..9: cannot be read" in text
