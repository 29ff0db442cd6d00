"""One self-contained HTML page about a cache: no network, readable on a phone and in print."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as kept_result
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trio_ray.cache.input_samples import Reread
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.report import charts
from trio_ray.report.charts import Chart
from trio_ray.report.gallery import BAD_READ, bad_examples, cards, choose
from trio_ray.report.heat_map import heat_png
from trio_ray.report.prediction import Predicted, compared
from trio_ray.report.repeat import command_that_repeats, job_that_repeats
from trio_ray.report.statistics import SampleNumbers, sample_numbers
from trio_ray.report.timeline import Timeline, timeline, together
from trio_ray.store.dataset import package_version, utc_now
from trio_ray.store.failures import read_failures
from trio_ray.store.findings import VerifyReport
from trio_ray.store.opening import open_store
from trio_ray.store.totals import Totals
from trio_ray.study import shown_bytes

TEMPLATES = Path(__file__).parent / "templates"

MOST_KEYS = 20_000
"""Samples that the page's search knows; of a larger cache those that were drawn, up to so many."""
MOST_LANES = 32
MOST_REPLICAS = 200
SHAPES = 6


@dataclass(frozen=True)
class ReportSettings:
    """What a report is asked for.

    Attributes:
        samples: most samples whose rows are read; of a larger cache whole shards are drawn.
        pictures: in each part of the gallery; 0 reads no input.
        how: the input is read again.
        predicted: what an estimate said, if there is one.
        verified: what `verify` found, if it was run.
        divergence: nats between answers from stored and from 16-bit states, if measured.
    """

    samples: int
    pictures: int
    how: Reread
    predicted: Predicted | None = None
    verified: VerifyReport | None = None
    divergence: np.ndarray | None = None


def cache_page(cache: PrunedCache, settings: ReportSettings, on_step: Callable[[str], None] = lambda what: None) -> str:
    """The page about one cache.

    Raises:
        ObjectDamaged: a table is not as it was committed.
        StoreError: the cache cannot be read. Input that cannot be read costs its pictures alone.
    """
    how = settings.how if settings.pictures else None
    on_step("reading commit records")
    totals, work = cache.commits.totals, timeline(cache.commits)
    failures = list(read_failures(open_store(cache.uri, settings.how.s3)).values())
    on_step("reading tables")
    numbers = sample_numbers(cache, settings.samples)
    on_step("drawing pictures")
    gallery = {
        title: cards(cache, numbers, places, how) for title, places in choose(numbers, settings.pictures).items()
    }
    bad = bad_examples(cache, islice(cache.quarantine_rows(), BAD_READ), how)
    on_step("writing the page")
    return render(
        "report.html",
        title=f"Cache {cache.uri}",
        cache=cache,
        identity=cache.dataset.identity,
        settings_yaml=yaml.safe_dump(cache.dataset.identity, allow_unicode=True, width=90),
        totals=totals,
        failures=failures,
        facts=facts_of(cache, totals),
        numbers=numbers,
        job=job_that_repeats(cache),
        command=command_that_repeats(cache),
        work=work,
        time_charts=_time_charts(work) if work else [],
        lanes=list(together(work.replicas, charts.SERIES)) if work else [],
        replicas=work.replicas[:MOST_REPLICAS] if work else [],
        histograms=_histograms(numbers, cache.level, settings.divergence),
        maps=_maps(numbers, cache.method.schedule.prune_points),
        shapes=_shapes(numbers),
        gallery=gallery,
        bad=bad,
        reasons_chart=_reasons(totals),
        predicted=compared(settings.predicted, totals, work),
        verified=settings.verified,
        keys=_keys(numbers, cache.level),
    )


def facts_of(cache: PrunedCache, totals: Totals) -> list[tuple[str, str]]:
    """What the cache is, by name."""
    method, dataset = cache.method, cache.dataset
    schedule = method.schedule
    codec = (dataset.identity["cache"].get("codec") or {}).get("name", "none")
    points = ", ".join(map(str, schedule.prune_points)) or "none"
    stored = totals.stored or 1
    return [
        ("Model", dataset.model or "not named in the manifest"),
        ("Method", f"{dataset.identity['method']['selector']}, prune points before layers {points}"),
        ("Stored", f"level {cache.level}, scope {cache.scope}, codec {codec}"),
        ("Samples", f"{totals.stored:,} in {totals.parts:,} parts of {totals.shards:,} shards"),
        ("Retention", f"{totals.retention:.1%} of {totals.image_tokens / stored:,.1f} image tokens a sample"),
        ("Bytes", f"{shown_bytes(totals.file_bytes)}, {shown_bytes(totals.file_bytes / stored)} a sample"),
        ("Quarantine", f"{totals.quarantined:,} samples"),
        ("Made", f"{_moment(dataset.created)}, trio-ray {dataset.package_version}"),
    ]


def render(template: str, **values: Any) -> str:
    """A page from a template of this package, with its style sheet and script inside."""
    style, script = _text("report.css"), _text("report.js")
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    page = _environment().get_template(template)
    return page.render(
        style=Markup(style), script=Markup(script), policy=policy, made=_moment(utc_now()), version=package_version(),
        **values,
    )  # fmt: skip


@kept_result
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"bytes": shown_bytes, "duration": duration, "moment": _moment, "data": _json}
    return environment


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """By which the page's own script and style are allowed, and nothing that came with the data."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(value: object) -> Markup:
    """JSON that can stand in a script element: a key may hold `</script>`."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _time_charts(work: Timeline) -> list[Chart]:
    breaks = [place for place, _ in work.breaks]
    unit = "time of work" + (", idle time cut out" if breaks else "")
    rates = together(work.replicas, charts.SERIES)
    charted = charts.stacked("Samples a second", rates, work.edges, breaks, unit, "samples/s", duration)
    busy = {replica.name: replica.busy for replica in work.replicas[:MOST_LANES]}
    return [charted, charts.lanes("Share of time that each device was busy", busy, work.edges, unit, duration)]


def _histograms(numbers: SampleNumbers, level: str, divergence: np.ndarray | None) -> list[Chart]:
    if not len(numbers):
        return []
    shown = [
        charts.histogram(
            "Image tokens held, mean over layers", 100 * numbers.retention, "% of the image tokens", _percent
        ),
        charts.histogram("Image tokens before pruning", numbers.image_tokens.astype(np.float64), "tokens", _whole),
    ]
    if len(numbers.kept):
        last = numbers.kept[-1].astype(np.float64)
        shown.append(charts.histogram("Tokens kept by the last prune point", last, "tokens", _whole))
    if level != "indices":
        size = numbers.size.astype(np.float64)
        shown.append(charts.histogram("Size beside the row", size, "bytes", shown_bytes))
    known = numbers.chance[~np.isnan(numbers.chance)]
    if len(known):
        shown.append(charts.histogram("Chance of the first answer token", 100 * known, "%", _percent))
    if divergence is not None and len(divergence):
        title = "Divergence of the answer that the codec causes"
        shown.append(charts.histogram(title, np.log10(np.maximum(divergence, 1e-8)), "nats, logarithmic", _power))
    return shown


@dataclass(frozen=True)
class HeatMaps:
    """The maps of one prune point, as data URIs, and what they say in words."""

    layer: int
    base: str
    grid: str
    base_alt: str
    grid_alt: str
    newlines: float
    most: float


def _maps(numbers: SampleNumbers, layers: tuple[int, ...]) -> list[HeatMaps]:
    places, maps = numbers.places, []
    for point, layer in enumerate(layers):
        with np.errstate(invalid="ignore"):
            base = places.base_kept[point] / places.base_all[point]
            grid = places.grid_kept[point] / places.grid_all[point]
        if np.isnan(base).all():
            continue
        most = float(max(np.nanmax(base), np.nanmax(grid) if not np.isnan(grid).all() else 0.0))
        newlines = float(places.newlines_kept[point] / max(1, places.newlines_all[point]))
        maps.append(
            HeatMaps(
                layer, heat_png(base, most), heat_png(grid, most), _map_alt("base view", base, layer),
                _map_alt("tiles", grid, layer), newlines, most,
            )
        )  # fmt: skip
    return maps


def _map_alt(name: str, share: np.ndarray, layer: int) -> str:
    if np.isnan(share).all():
        return f"No tokens of the {name}"
    size = len(share)
    row, column = np.unravel_index(int(np.nanargmax(share)), share.shape)
    most = (
        f"{np.nanmax(share):.1%} at {(row + 0.5) / size:.0%} from the top and {(column + 0.5) / size:.0%} from the left"
    )
    return f"Share of the {name}'s tokens kept before layer {layer}: {np.nanmin(share):.1%} to {most}"


def _shapes(numbers: SampleNumbers) -> list[Chart]:
    """For the most frequent grids a map of the tiles at the last prune point."""
    last = numbers.places.points - 1
    frequent = sorted(numbers.places.tiles.items(), key=lambda item: -item[1].images)[: SHAPES if last >= 0 else 0]
    return [
        charts.tile_map(f"{shape[0]} x {shape[1]} tiles, {sums.images:,} images", *sums.shares(last, shape))
        for shape, sums in frequent
    ]


def _reasons(totals: Totals) -> Chart | None:
    reasons = {reason: float(count) for reason, count in totals.reasons.items()}
    return charts.bars("Bad samples by reason", reasons, lambda value: f"{value:,.0f}") if reasons else None


def _keys(numbers: SampleNumbers, level: str) -> dict[str, Any]:
    """Columns for the page's search: drawn samples, evenly thinned to `MOST_KEYS`."""
    step = max(1, -(-len(numbers) // MOST_KEYS))
    place = slice(None, None, step)
    chance = np.round(100 * numbers.chance[place], 1)
    return {
        "shards": numbers.shards,
        "key": numbers.keys[place],
        "shard": numbers.shard[place].tolist(),
        "tokens": numbers.image_tokens[place].tolist(),
        "kept": numbers.kept[-1][place].tolist() if len(numbers.kept) else [],
        "bytes": numbers.size[place].tolist() if level != "indices" else [],
        "chance": [None if np.isnan(value) else float(value) for value in chance],
        "total": numbers.total,
    }


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min" + (f" {seconds % 60:.0f} s" if seconds < 600 and seconds % 60 >= 1 else "")
    return f"{seconds / 3600:.3g} h" if seconds < 36e4 else f"{seconds / 3600:,.0f} h"


def _moment(text: str) -> str:
    return f"{text[:10]} {text[11:16]} UTC"


def _percent(value: float) -> str:
    return f"{value:.4g} %"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _power(value: float) -> str:
    return f"{10.0**value:.1g}"
