"""What Prometheus finds on a node while a job runs, scraped from the real metrics agent."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from tests.corpora import samples, write_tar
from tests.precompute.runs import job_config
from trio_ray.cluster.events import ActorEnded, ActorLost, ActorReady, PoolEvent, Report, WorkDone, WorkFailed
from trio_ray.cluster.metrics import Metric
from trio_ray.precompute import metrics
from trio_ray.precompute.job import run_job
from trio_ray.precompute.metrics import METRICS, JobMetrics, ReplicaMetrics
from trio_ray.precompute.plan import Task
from trio_ray.precompute.shard_writer import PartReport
from trio_ray.precompute.summary import JobSummary
from trio_ray.source.sample import Shard

pytestmark = pytest.mark.slow

REPORT_INTERVAL_S = 1
PATIENCE_S = 40.0


@pytest.fixture(scope="module")
def node() -> Iterator[str]:
    """A Ray node that reports more often than by default; gives the URL of its metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _system_config={"metrics_report_interval_ms": 1000 * REPORT_INTERVAL_S},
        )
        (only,) = ray.nodes()
        yield f"http://{only['NodeManagerAddress']}:{only['MetricsExportPort']}/metrics"
        ray.shutdown()


def scrape(url: str, output: str, reason: str | None = None) -> Counter[str]:
    """Series of one cache -> value, summed over processes (and over a histogram's buckets); of one reason or all. There
    are none before the node's agent listens.
    """
    found: Counter[str] = Counter()
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    except urllib.error.URLError:
        return found
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("output") == output and reason in (None, sample.labels.get("reason")):
                found[sample.name] += sample.value
    return found


def wait_for(url: str, output: str, true: Callable[[Counter[str]], bool]) -> Counter[str]:
    deadline = time.monotonic() + PATIENCE_S
    while not true(found := scrape(url, output)):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found


class Watcher:
    """An observer that holds the job at its first part, until the replica is seen."""

    def __init__(self, url: str, output: str) -> None:
        self.url, self.output = url, output
        self.seen: Counter[str] = Counter()

    def note(self, event: PoolEvent[Task], summary: JobSummary) -> None:
        """See `Observer`."""
        if isinstance(event, Report) and not self.seen:
            self.seen = wait_for(self.url, self.output, lambda found: "ray_trio_ray_replicas_ready" in found)


def test_a_job_counts_on_the_node_what_it_says_in_its_summary(node: str, tiny_model: Path, tmp_path: Path) -> None:
    good = [
        write_tar(tmp_path / f"{n}.tar", [*samples(6, first=10 * n), {"__key__": f"bad{n}", "png": b""}])
        for n in (0, 1)
    ]
    config = job_config(tiny_model, [str(file) for file in [*good, tmp_path / "absent.tar"]], tmp_path / "cache")
    watcher = Watcher(node, config.output)
    summary = run_job(config, observer=watcher.note)
    assert (summary.stored, summary.quarantined, summary.parts, len(summary.failed)) == (12, 2, 4, 1)
    assert watcher.seen["ray_trio_ray_replicas_ready"] == 1
    assert watcher.seen["ray_trio_ray_shards_left"] == 2

    found = wait_for(node, config.output, lambda found: found["ray_trio_ray_shards_completed_total"] == 2)
    assert found["ray_trio_ray_samples_stored_total"] == summary.stored
    assert found["ray_trio_ray_samples_quarantined_total"] == summary.quarantined
    assert scrape(node, config.output, "text_missing")["ray_trio_ray_samples_quarantined_total"] == summary.quarantined
    assert found["ray_trio_ray_parts_committed_total"] == summary.parts
    assert found["ray_trio_ray_bytes_written_total"] == summary.bytes > 0
    assert found["ray_trio_ray_shards_failed_total"] == len(summary.failed)
    assert 0 < found["ray_trio_ray_device_seconds_total"] < summary.seconds
    assert found["ray_trio_ray_replica_load_seconds_count"] == 1
    assert found["ray_trio_ray_part_seconds_count"] >= 1
    wait_for(node, config.output, lambda found: "ray_trio_ray_replicas_ready" not in found)


def test_every_declared_series_is_exported_and_a_gauge_stays_while_nothing_changes(node: str) -> None:
    task = Task(Shard("name", "s3://corpus/a.tar", 1, "e", "webdataset"), frozenset())
    bad = {"image_empty": 1, "text_empty": 3}
    events: list[PoolEvent[Task]] = [
        Report(0, task, PartReport("name", 0, 6, bad, 100, True, device_ms=500.0)),
        Report(0, task, PartReport("name", 1, 0, {}, 0, True, device_ms=250.0)),
        WorkDone(0, task),
        WorkFailed(task, 3, "it kills"),
        ActorReady(0, "cpu"),
        ActorLost(0, "killed"),
        ActorEnded(0),
    ]
    with JobMetrics("s3://b/every", shards_left=5, shards_failed=1) as job:
        for event in events:
            job.update(event)
        ReplicaMetrics("s3://b/every", load_seconds=2.0).part_done(20.0)
        time.sleep(4 * REPORT_INTERVAL_S)  # the agent forgets what is not set again in two intervals
        found = wait_for(node, "s3://b/every", lambda found: "ray_trio_ray_part_seconds_count" in found)
    assert {series for metric in METRICS for series in metric.series} <= set(found)
    counted = {name.removeprefix("ray_trio_ray_"): value for name, value in found.items() if name.endswith("_total")}
    assert counted == {
        "samples_stored_total": 6,
        "samples_quarantined_total": 4,
        "parts_committed_total": 1,
        "bytes_written_total": 100,
        "device_seconds_total": 0.75,
        "shards_completed_total": 1,
        "shards_failed_total": 2,
        "replicas_lost_total": 1,
    }
    by_reason = [scrape(node, "s3://b/every", reason) for reason in ("image_empty", "text_empty", "text_missing")]
    assert [found["ray_trio_ray_samples_quarantined_total"] for found in by_reason] == [1, 3, 0]
    assert found["ray_trio_ray_shards_left"] == 3
    wait_for(node, "s3://b/every", lambda found: "ray_trio_ray_shards_left" not in found)


def test_the_table_lists_each_metric_once_with_description_and_unit() -> None:
    declared = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert sorted(metric.name for metric in METRICS) == sorted({metric.name for metric in declared})
    for metric in METRICS:
        assert metric.name.startswith("trio_ray_")
        assert metric.description.endswith(".")
        assert metric.unit
        assert bool(metric.boundaries) == (metric.kind == "histogram")
        assert metric.kind != "histogram" or metric.name.endswith(f"_{metric.unit}")
