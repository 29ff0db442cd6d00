"""What an estimate says of storing against recomputing, held against arithmetic by hand."""

from __future__ import annotations

import pytest

from trio_ray.estimate.choices import Terms, verdict
from trio_ray.estimate.prices import Prices
from trio_ray.estimate.sizes import MemberSize
from trio_ray.estimate.times import SampleTimes

TIMES = SampleTimes("given", precompute_s=0.012, pruned_s=0.010, unpruned_s=0.060, known_s=0.008, embeds_s=0.006)
KV = MemberSize("kv", "int4", 19_999_000.0, 0.9, "computed")
RAW = MemberSize("kv", "raw", 80e6, 1.0, "computed")
EMBEDS = MemberSize("embeds", None, 2_999_000.0, 1.0, "computed")


def terms(bandwidth: float | None, prices: Prices | None = None) -> Terms:
    return Terms(TIMES, 1000, 1000.0, bandwidth, prices or Prices())


def test_break_even_is_where_reading_takes_as_long_as_recomputing() -> None:
    """20 MB in 10 ms are 2 GB/s; at 4 GB/s a use takes 5 ms and saves 5, so 12 ms are back after 2.4 uses."""
    choice = terms(4.0).choice(KV)
    assert (choice.bytes_per_sample, choice.total_bytes) == (20e6, 20e9)
    assert choice.read_s == pytest.approx(0.005)
    assert choice.pruned.break_even_gb_per_s == pytest.approx(2.0)
    assert choice.pruned.break_even_reuses == pytest.approx(2.4)
    assert choice.unpruned.break_even_gb_per_s == pytest.approx(20e6 / 0.060 / 1e9)
    assert choice.unpruned.break_even_reuses == pytest.approx(0.012 / 0.055)


def test_what_a_level_leaves_to_compute_counts_against_it() -> None:
    """3 MB of embeddings leave 6 of 10 ms to do: 0.75 GB/s; unpacking counts likewise."""
    assert terms(1.0).choice(EMBEDS).pruned.break_even_gb_per_s == pytest.approx(0.75)
    assert terms(1.0).choice(EMBEDS).use_s == pytest.approx(0.009)
    assert terms(4.0).choice(KV, unpack_s=0.005).pruned.break_even_gb_per_s == pytest.approx(4.0)
    assert terms(4.0).choice(KV, unpack_s=0.010).pruned.break_even_gb_per_s is None


def test_in_money_computing_and_storage_count() -> None:
    """At $36 an hour a second is one cent: $0.00012 to precompute, $0.0004 to keep 20 MB two months at $0.01; a use
    saves $0.00005.
    """
    prices = Prices(36.0, 0.01, months=2.0)
    assert terms(4.0, prices).choice(KV).pruned.break_even_reuses_by_cost == pytest.approx(0.00052 / 0.00005)
    assert terms(4.0, Prices(36.0, None)).choice(KV).pruned.break_even_reuses_by_cost is None


def test_a_price_that_is_not_given_makes_no_cost() -> None:
    assert Prices().compute(3600) is None
    assert Prices().storage(1e9) is None
    assert Prices(gpu_per_hour=2.0).compute(1800) == 1.0
    assert Prices(storage_per_gb_month=0.02, months=6).storage(1e12) == pytest.approx(120.0)


def test_the_verdict_names_the_fastest_choice_or_says_recompute() -> None:
    fast, slow = terms(4.0), terms(0.25)
    stored = verdict(tuple(fast.choice(size) for size in (RAW, KV, EMBEDS)))
    assert stored.startswith("store kv int4: a use takes 5 ms instead of 10 ms pruned and 60 ms unpruned")
    assert "from 2.4 uses on" in stored
    assert "lossy" in stored
    assert "embeds) takes 6.75 ms" in stored
    assert verdict(tuple(slow.choice(size) for size in (RAW, KV, EMBEDS))).startswith("recompute: ")
    only_small = verdict(tuple(terms(1.0).choice(size) for size in (RAW, EMBEDS)))
    assert only_small.startswith("store embeds: ")
    assert "do not store keys and values: recomputing them is faster" in only_small
    unknown = verdict(tuple(terms(None).choice(size) for size in (RAW, KV, EMBEDS)))
    assert "embeds where a replica reads more than 0.75 GB/s" in unknown
