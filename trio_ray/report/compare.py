"""One HTML page about two caches of the same corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trio_ray.cache.input_samples import InputChanged, Reread, read_what_is_there
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.report import charts
from trio_ray.report.charts import Chart
from trio_ray.report.gallery import picture_of
from trio_ray.report.page import facts_of, render
from trio_ray.report.pairs import Pair, Pairs, pair_samples
from trio_ray.report.pictures import question_of
from trio_ray.source.rejection import Rejected
from trio_ray.source.sample import Sample
from trio_ray.store.dataset import differences
from trio_ray.store.totals import Totals

MOST_DIFFERENT = 40
"""Lines of the table of the samples that differ most."""


@dataclass(frozen=True)
class PairCard:
    """A sample with what the two caches keep of it; `picture` is a data URI."""

    pair: Pair
    question: str
    answer: str | None
    picture: str | None
    alt: str
    missing: str | None


def comparison_page(
    cache: PrunedCache,
    other: PrunedCache,
    samples: int,
    pictures: int,
    how: Reread,
    on_step: Callable[[str], None] = lambda what: None,
) -> str:
    """The page. Arguments as of `cache_page`.

    Raises:
        ConfigError: the caches have no shard in common.
        ObjectDamaged: a table is not as it was committed.
        StoreError: a cache cannot be read. Input that cannot be read costs its pictures alone.
    """
    on_step("reading commit records")
    totals, other_totals = cache.commits.totals, other.commits.totals
    on_step("reading tables")
    pairs = pair_samples(cache, other, samples)
    on_step("drawing pictures")
    different = sorted(pairs.pairs, key=_difference, reverse=True)
    shown = _cards(cache, other, different[:pictures], how)
    on_step("writing the page")
    return render(
        "compare.html",
        title=f"{cache.uri} and {other.uri}",
        cache=cache,
        other=other,
        facts=[
            (name, value, theirs)
            for (name, value), (_, theirs) in zip(facts_of(cache, totals), facts_of(other, other_totals), strict=True)
        ],
        costs=_costs(totals, other_totals),
        settings=list(differences(cache.dataset.identity, other.dataset.identity)),
        pairs=pairs,
        histograms=_histograms(pairs),
        cards=shown,
        different=different[:MOST_DIFFERENT],
    )


def _difference(pair: Pair) -> tuple[float, float]:
    """What orders the samples: first by the answer, then by the tokens that both keep."""
    distance = 0.0 if np.isnan(pair.distance) else pair.distance
    return distance, 0.0 if np.isnan(pair.overlap) else 1 - pair.overlap


def _costs(totals: Totals, other: Totals) -> list[tuple[str, str, str]]:
    def line(name: str, of: Callable[[Totals], float], form: str) -> tuple[str, str, str]:
        values = (f"{of(one):{form}}" if one.stored else "-" for one in (totals, other))
        return (name, *values)  # type: ignore[return-value]

    return [
        line("Bytes a sample, all files", lambda one: one.file_bytes / one.stored, ",.0f"),
        line("Device time a sample, ms", lambda one: 1e3 * one.device_s / one.stored, ",.2f"),
        line("Image tokens held a sample", lambda one: one.held_tokens / one.stored, ",.1f"),
        line("Share of bad samples, %", lambda one: 100 * one.quarantined / (one.stored + one.quarantined), ".2f"),
    ]


def _histograms(pairs: Pairs) -> list[Chart]:
    shown = []
    overlap, distance = pairs.column("overlap"), pairs.column("distance")
    if not np.isnan(overlap).all():
        known = 100 * overlap[~np.isnan(overlap)]
        shown.append(
            charts.histogram("Tokens that both keep at the end, of those that either keeps", known, "%", _number)
        )
    if not np.isnan(distance).all():
        known = distance[~np.isnan(distance)]
        shown.append(charts.histogram("Distance of the first answer tokens' distributions", known, "0 to 1", _number))
    sizes = pairs.column("size"), pairs.column("other_size")
    if len(pairs.pairs) and all((size > 0).all() for size in sizes):
        shown.append(
            charts.histogram("Bytes beside the row, second by first cache", sizes[1] / sizes[0], "times", _number)
        )
    return shown


def _cards(cache: PrunedCache, other: PrunedCache, pairs: Sequence[Pair], how: Reread) -> list[PairCard]:
    rows = cache.rows_at([pair.number for pair in pairs])
    others = other.rows_at([pair.other_number for pair in pairs])
    shown = []
    for pair, row, theirs, sample in zip(pairs, rows, others, read_what_is_there(cache, rows, how), strict=True):
        picture, missing = None, str(sample) if isinstance(sample, InputChanged) else None
        if isinstance(sample, Sample):
            try:
                last = [one["kept"][-1] if one["kept"] else range(one["image_tokens"]) for one in (row, theirs)]
                picture = picture_of(cache, row, sample, last)
            except (Rejected, ValueError) as error:
                missing = str(error)
        question = question_of(row, sample if isinstance(sample, Sample) else None)
        alt = (
            f"The image of {pair.key}, its base view and its tiles; above what the first cache keeps, below the second"
        )
        shown.append(PairCard(pair, question, row["answer"], picture, alt, missing))
    return shown


def _number(value: float) -> str:
    return f"{value:.3g}"
