"""The Grafana dashboard: every name in its queries is exported by the job or by Ray, and every metric is shown."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import promql_parser
import pytest
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

from tests.infra.files import INFRA
from trio_ray.cluster.metrics import OUTPUT
from trio_ray.precompute.metrics import METRICS, REASON

DASHBOARD = json.loads((INFRA / "grafana" / "dashboard.json").read_text())
PANELS = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
OURS = {series for metric in METRICS for series in metric.series}
RAYS = set(re.findall(r"\bray_\w+", inspect.getsource(default_dashboard_panels)))
"""What Ray's own dashboard asks for."""


def parse(query: str) -> Any:
    """A query as Prometheus gets it, with Grafana's variables filled in."""
    return promql_parser.parse(query.replace("$__rate_interval", "1m").replace("$__range", "6h"))


def selected(tree: Any) -> list[Any]:
    """The vector selectors of a query."""
    if isinstance(tree, promql_parser.VectorSelector):
        return [tree]
    parts = [getattr(tree, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "vs")]
    parts += list(getattr(tree, "args", None) or ())
    return [found for part in parts if part is not None for found in selected(part)]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_promql_about_metrics_that_exist(query: str) -> None:
    names = [selector.name for selector in selected(parse(query))]
    assert names
    assert set(names) == set(re.findall(r"\bray_\w+", query))  # none was overlooked
    assert set(names) <= OURS | RAYS


@pytest.mark.parametrize("query", [query for query in QUERIES if "ray_trio_ray_" in query])
def test_a_query_about_the_job_keeps_to_the_chosen_caches(query: str) -> None:
    for selector in selected(parse(query)):
        (matcher,) = selector.matchers.matchers
        assert (matcher.name, matcher.value) == (OUTPUT, "$output")


def test_a_name_that_nobody_exports_is_found() -> None:
    assert "ray_trio_ray_samples_stored" not in OURS | RAYS  # without _total
    with pytest.raises(ValueError, match="parenthesis"):
        parse("sum(rate(ray_trio_ray_samples_stored_total[5m])")


def test_every_metric_of_the_job_is_shown() -> None:
    shown = {selector.name for query in QUERIES for selector in selected(parse(query))}
    assert [metric.name for metric in METRICS if not shown & set(metric.series)] == []


def grouped(tree: Any) -> set[str]:
    """The labels that a query groups by."""
    parts = [getattr(tree, name, None) for name in ("expr", "lhs", "rhs")] + list(getattr(tree, "args", None) or ())
    modifier = getattr(tree, "modifier", None)
    own = set(modifier.labels) if isinstance(tree, promql_parser.AggregateExpr) and modifier else set()
    return own.union(*(grouped(part) for part in parts if part is not None))


@pytest.mark.parametrize("query", [query for query in QUERIES if "ray_trio_ray_" in query])
def test_a_query_groups_by_labels_that_its_metric_has(query: str) -> None:
    shown = {selector.name for selector in selected(parse(query))}
    metrics = [metric for metric in METRICS if shown & set(metric.series)]
    for metric in metrics:
        buckets = {"le"} if metric.kind == "histogram" else set()
        assert grouped(parse(query)) <= {OUTPUT, *metric.labels} | buckets, metric.name


def test_bad_samples_are_shown_by_reason() -> None:
    by_reason = [query for query in QUERIES if REASON in grouped(parse(query))]
    assert {selector.name for query in by_reason for selector in selected(parse(query))} == {
        "ray_trio_ray_samples_quarantined_total"
    }


def test_the_gpus_are_watched() -> None:
    shown = {selector.name for query in QUERIES for selector in selected(parse(query))}
    assert {"ray_node_gpus_utilization", "ray_node_gram_used"} <= shown


def test_panels_have_their_own_place_and_a_data_source_that_can_be_chosen() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert variables[OUTPUT]["query"].startswith("label_values(ray_trio_ray_")
