"""What an estimate says of storing against recomputing, held against arithmetic by hand."""

from __future__ import annotations

import pytest

from trio_ray.estimate.choices import Choice, Terms, Use, verdict
from trio_ray.estimate.prices import Prices
from trio_ray.estimate.restore_rates import quality_of, rate_of
from trio_ray.estimate.sizes import MemberSize
from trio_ray.estimate.times import SampleTimes
from trio_ray.kv.codecs.registry import full_spec, make_codec

TIMES = SampleTimes(
    "given", precompute_s=0.012, pruned_s=0.010, unpruned_s=0.060, known_s=0.008, embeds_s=0.006, token_s=0.001
)
KV = MemberSize("kv", "int4", 19_999_000.0, 0.9, "computed")
RAW = MemberSize("kv", "raw", 80e6, 1.0, "computed")
EMBEDS = MemberSize("embeds", None, 2_999_000.0, 1.0, "computed")


def terms(bandwidth: float | None, prices: Prices | None = None) -> Terms:
    return Terms(TIMES, 1000, 1000.0, bandwidth, prices or Prices(), Use(10, 2))


def advice(bandwidth: float | None, *sizes: MemberSize) -> str:
    return verdict([weighed(terms(bandwidth), size) for size in sizes], Use(10, 2))


def weighed(own: Terms, size: MemberSize) -> Choice:
    return own.choice(size, quality="close" if size is KV else "exact")


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
    assert terms(4.0).choice(KV, restore_s=0.005).pruned.break_even_gb_per_s == pytest.approx(4.0)
    assert terms(4.0).choice(KV, restore_s=0.010).pruned.break_even_gb_per_s is None


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
    stored = advice(4.0, RAW, KV, EMBEDS)
    assert stored.startswith("store kv int4: a use takes 5 ms instead of 10 ms pruned and 60 ms unpruned")
    assert "from 2.4 uses on" in stored
    assert "lossy" in stored
    assert "embeds) takes 6.75 ms" in stored
    assert "gives 1.2 times as many answers a second as pruning anew, 3.2 times" in stored
    assert advice(0.25, RAW, KV, EMBEDS).startswith("recompute: ")
    only_small = advice(1.0, RAW, EMBEDS)
    assert only_small.startswith("store embeds: ")
    assert "do not store keys and values: recomputing them is faster" in only_small
    unknown = advice(None, RAW, KV, EMBEDS)
    assert "embeds where a replica reads more than 0.75 GB/s" in unknown


def test_decoding_the_answers_counts_on_both_sides() -> None:
    """Two answers of ten tokens take 20 ms behind either prefix: 30 ms against 25, and 80 against 25."""
    choice = terms(4.0).choice(KV)
    assert choice.pruned.times_faster == pytest.approx(30 / 25)
    assert choice.unpruned.times_faster == pytest.approx(80 / 25)
    assert terms(None).choice(KV).pruned.times_faster is None


def test_an_answer_of_one_token_needs_no_prefix() -> None:
    own = terms(4.0)
    choices = [weighed(own, KV), weighed(own, EMBEDS)]
    assert verdict(choices, Use(answer_tokens=1), has_first_token=True).startswith("store embeds: answers of one token")
    assert not verdict(choices, Use(answer_tokens=1), has_first_token=False).startswith("store embeds: answers of one")
    assert not verdict(choices, Use(answer_tokens=2), has_first_token=True).startswith("store embeds: answers of one")


def test_a_codec_of_poor_quality_is_never_recommended() -> None:
    own = terms(4.0)
    tiny = MemberSize("kv", "int2", 1e6, 0.9, "computed")
    choices = [own.choice(tiny, quality="poor"), weighed(own, KV)]
    assert verdict(choices, Use()).startswith("store kv int4: ")
    qualities = {name: quality_of(make_codec(full_spec(name))) for name in ("raw", "int8", "int4", "int2")}
    assert qualities == {"raw": "exact", "int8": "close", "int4": "close", "int2": "poor"}
    mixed = make_codec(full_spec({"name": "int", "keys": 2, "values": 4}))
    assert quality_of(mixed) == "poor"


def test_restoring_takes_what_was_measured() -> None:
    """Mistral's and Vicuna's samples, docs/measured/reading.md: samples a second from host memory."""
    for name, mistral, vicuna in [("int4", 1098, 485), ("int8", 864, 365), ("raw", 1129, 279)]:
        rate = rate_of(make_codec(full_spec(name)))
        assert 1 / rate.seconds(40.5e6) == pytest.approx(mistral, rel=0.05)
        assert 1 / rate.seconds(178.3e6) == pytest.approx(vicuna, rel=0.05)
    assert 1 / rate_of(None).seconds(40.5e6) == pytest.approx(1239, rel=0.05)
