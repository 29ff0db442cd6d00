"""Predicted requests are those that a job really makes of an S3 server."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.corpora import sample, samples, write_tar
from tests.precompute.runs import job_config, run_here
from tests.seaweed import S3Server
from trio_ray.estimate.estimate import PlanSettings, make_plan
from trio_ray.estimate.prices import Prices
from trio_ray.estimate.requests import tar_requests
from trio_ray.model.replica import Replica

MIB = 1 << 20


def test_an_object_is_one_put_until_it_is_larger_than_a_piece() -> None:
    assert tar_requests(0, 8 * MIB) == 0
    assert tar_requests(8 * MIB, 8 * MIB) == 1
    assert tar_requests(8 * MIB + 1, 8 * MIB) == 2 + 2
    assert tar_requests(80 * MIB, 8 * MIB) == 2 + 10


def test_a_jobs_requests_are_as_predicted(
    tmp_path: Path, tiny_model: Path, llama: Replica, s3_server: S3Server, s3_environment: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Input and output on S3, a bad sample in one part, several parts a shard."""
    made: Counter[str] = Counter()
    session_client = boto3.Session.client

    def counted(*args: Any, **kwargs: Any) -> Any:
        client = session_client(*args, **kwargs)
        client.meta.events.register("before-send.s3", lambda request, **_: made.update([request.method]))
        return client

    corpus = s3_server.fresh_uri()
    plain = s3_server.client()
    for name, members in (("a", [*samples(9), sample(9, png=b"")]), ("b", samples(7))):
        file = write_tar(tmp_path / f"{name}.tar", members)
        plain.upload_file(str(file), s3_server.bucket, f"{corpus.split('/')[-1]}/{name}.tar")
    config = job_config(
        tiny_model, [f"{corpus}/a.tar", f"{corpus}/b.tar"], s3_server.fresh_uri(),
        s3__endpoint_url=s3_server.endpoint_url, s3__region="us-east-1",
    )  # fmt: skip
    plan = make_plan(PlanSettings(config, 100, {}, 1e12, 0.0, 1, None, Prices()))
    monkeypatch.setattr(boto3.Session, "client", counted)
    run_here(config, llama)
    assert plan.job.parts == 5
    listed = 1  # a GET that is priced as a write; a second one, of failures, belongs to the driver, not run here
    assert plan.job.requests.writes == pytest.approx(made["PUT"] + made["POST"] + listed, abs=1)
    assert plan.job.requests.reads == pytest.approx(made["GET"] + made["HEAD"] - listed, abs=2)
