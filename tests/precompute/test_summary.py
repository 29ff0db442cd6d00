"""The summary of a job, for the person who started it."""

from __future__ import annotations

from trio_ray.precompute.summary import JobSummary


def test_a_summary_names_what_is_not_in_the_cache() -> None:
    summary = JobSummary("s3://b/cache", "run", 5, 2, stored=7, quarantined=1, parts=3, bytes=12345, seconds=4.0)
    summary.failed["s3://corpus/x.jsonl rows 0..9"] = "cannot be read"
    text = str(summary)
    assert not summary.ok
    assert "7 samples stored, 1 quarantined, in 3 parts, 12,345 bytes, 4.0 s (2.0 samples/s)" in text
    assert "FAILED s3://corpus/x.jsonl rows 0..9: cannot be read" in text


def test_a_summary_counts_the_reasons_and_says_what_to_run_next() -> None:
    summary = JobSummary("s3://b/cache", "run", 5, 2, stored=7, cache_stored=40, cache_quarantined=26)
    summary.reasons.update(image_empty=1, text_missing=25)
    text = str(summary)
    assert summary.ok
    assert "quarantined: 25 text_missing, 1 image_empty; see trio-ray inspect s3://b/cache --quarantine" in text
    assert "the cache holds 40 samples, and 26 in quarantine" in text


def test_a_run_after_which_nothing_is_stored_is_no_success() -> None:
    summary = JobSummary("s3://b/cache", "run", 1, 0, quarantined=3, cache_stored=0, cache_quarantined=3)
    assert not summary.ok
    assert "NOTHING IS STORED" in str(summary)


def test_a_thousand_lost_files_do_not_flood_the_screen() -> None:
    failed = {f"{number}.tar": "cannot be read" for number in range(1000)}
    lines = str(JobSummary("s3://b/cache", "run", 1000, 0, failed=failed)).splitlines()
    assert len(lines) < 30
    assert any("980 more; see trio-ray inspect s3://b/cache --failed" in line for line in lines)
