"""The operators' guide says what the code and the files say."""

from __future__ import annotations

import re

from tests.infra.files import INFRA, REPOSITORY
from trio_ray.cli import EXIT_CODES
from trio_ray.precompute.metrics import METRICS

TEXT = (INFRA / "README.md").read_text()


def test_the_table_of_metrics_is_the_codes() -> None:
    rows = re.findall(r"^\| `(trio_ray_\w+)` \| (\w+) \| (\w+) \| (.+) \|$", TEXT, flags=re.MULTILINE)
    assert rows == [(metric.name, metric.kind, metric.unit, metric.description) for metric in METRICS]


def test_alarms_ask_for_series_that_exist() -> None:
    named = set(re.findall(r"ray_trio_ray_\w+", TEXT))
    assert named
    assert named <= {series for metric in METRICS for series in metric.series}


def test_files_that_it_names_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    paths = re.findall(r"\b(?:infra|jobs)/[\w./-]+", TEXT)
    assert len(links) > 8
    assert [link for link in links if not (INFRA / link).exists()] == []
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_every_exit_code_of_the_command_line_is_explained() -> None:
    codes = re.findall(r"^  (\d+) +", EXIT_CODES, flags=re.MULTILINE)
    assert codes == re.findall(r"^\| (\d+) \|", TEXT, flags=re.MULTILINE)
