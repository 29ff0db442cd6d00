"""Whether it pays to store: each level and codec against recomputing, pruned and unpruned.

For a sample, with b its stored bytes, B the bandwidth that a reading replica gets, f what is left to compute behind
what was read (restoring for kv), c what recomputing takes and p what precomputing took, all in seconds of a replica:

    a use from the cache takes        b / B + f
    it is slower than recomputing     below the break-even bandwidth  b / (c - f);  at any bandwidth where f >= c
    precomputing has paid             from  p / (c - b / B - f)  uses on
    answers a second are more by      (c + q a) / (b / B + f + q a),  with q questions behind a prefix, and a seconds to
                                      decode an answer

With prices, uses to break even in money = (p's $ + storage $) / ($ of the seconds that a use saves).

In favour of recomputing, reading and decoding the input again counts nothing; a replica is taken to wait while it
reads, where a loader that prefetches hides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trio_ray.estimate.prices import Prices
from trio_ray.estimate.restore_rates import Quality
from trio_ray.estimate.sizes import Level, MemberSize
from trio_ray.estimate.times import SampleTimes

GB = 1e9


@dataclass(frozen=True)
class Against:
    """The cache compared with one way of recomputing.

    Attributes:
        recompute_s: what a sample takes to compute again.
        break_even_gb_per_s: bandwidth below which that is faster; None where it is faster at any bandwidth.
        break_even_reuses: uses from which on precomputing has paid in time; None where it never does, or where no
            bandwidth was given.
        break_even_reuses_by_cost: the same in money; None likewise, or where a price is missing.
        times_faster: how many times as many answers a second the cache gives; None without a bandwidth.
    """

    recompute_s: float
    break_even_gb_per_s: float | None
    break_even_reuses: float | None
    break_even_reuses_by_cost: float | None
    times_faster: float | None


@dataclass(frozen=True)
class Choice:
    """A level, and for kv a codec.

    Attributes:
        level, codec: which; see `MemberSize`.
        bytes_per_sample: what a use reads: the sample's member and its row.
        total_bytes: of all samples.
        source: whether sizes were `encoded` really, `computed` or `assumed`.
        zstd_factor: see `MemberSize`.
        quality: how close the answers are, see `quality_of`.
        read_s: at the given bandwidth; None without one.
        finish_s: what is left to compute behind it.
        pruned, unpruned: against recomputing so.
    """

    level: Level
    codec: str | None
    bytes_per_sample: float
    total_bytes: float
    source: Literal["encoded", "computed", "assumed"]
    zstd_factor: float
    quality: Quality
    read_s: float | None
    finish_s: float
    pruned: Against
    unpruned: Against

    @property
    def name(self) -> str:
        """`kv int4`, `embeds`."""
        return self.level if self.codec is None else f"{self.level} {self.codec}"

    @property
    def use_s(self) -> float | None:
        """Seconds of one use; None without a bandwidth."""
        return None if self.read_s is None else self.read_s + self.finish_s


@dataclass(frozen=True)
class Use:
    """What a cache is read for.

    Attributes:
        answer_tokens: of an answer.
        questions: behind one prefix, which share it (more than one with `cache.scope: image`).
    """

    answer_tokens: int = 16
    questions: int = 1


@dataclass(frozen=True)
class Terms:
    """The numbers that all choices share.

    Attributes:
        times: of a sample.
        samples: in all.
        row_bytes: of a sample's row in its table.
        bandwidth_gb_per_s: that one replica reads with; None if not given.
        prices: of everything.
        use: what the cache is read for.
    """

    times: SampleTimes
    samples: float
    row_bytes: float
    bandwidth_gb_per_s: float | None
    prices: Prices
    use: Use

    def choice(self, size: MemberSize, restore_s: float = 0.0, quality: Quality = "exact") -> Choice:
        """Weigh one; `restore_s` is what a replica spends on a prefix between its bytes and its keys and values."""
        times = self.times
        bytes_ = size.bytes + self.row_bytes
        finish = {"kv": restore_s, "embeds": times.embeds_s, "indices": times.known_s}[size.level]
        read = None if self.bandwidth_gb_per_s is None else bytes_ / (GB * self.bandwidth_gb_per_s)
        return Choice(
            size.level, size.codec, bytes_, bytes_ * self.samples, size.source, size.zstd_factor, quality, read, finish,
            self._against(times.pruned_s, bytes_, read, finish),
            self._against(times.unpruned_s, bytes_, read, finish),
        )  # fmt: skip

    def _against(self, recompute: float, bytes_: float, read: float | None, finish: float) -> Against:
        bandwidth = bytes_ / (GB * (recompute - finish)) if recompute > finish else None
        reuses = by_cost = faster = None
        if read is not None:
            answers = self.use.questions * self.use.answer_tokens * self.times.token_s
            faster = (recompute + answers) / (read + finish + answers)
        if read is not None and recompute > read + finish:
            saved = recompute - read - finish
            reuses, by_cost = self.times.precompute_s / saved, self._by_cost(bytes_, saved)
        return Against(recompute, bandwidth, reuses, by_cost, faster)

    def _by_cost(self, bytes_: float, saved: float) -> float | None:
        """The number of uses after which a sample's computing and storage are paid back, if each use saves this many
        seconds.
        """
        computing, storage = self.prices.compute(self.times.precompute_s), self.prices.storage(bytes_)
        gain = self.prices.compute(saved)
        return (computing + storage) / gain if gain and computing is not None and storage is not None else None


def verdict(choices: Sequence[Choice], use: Use, has_first_token: bool = False) -> str:
    """What to do, in plain sentences: store the choice whose use is fastest, or recompute. A choice of poor quality is
    never recommended.

    Args:
        choices: what may be stored.
        use: what it is read for.
        has_first_token: each sample's row holds the first token of its answer.
    """
    if has_first_token and use.answer_tokens == 1:
        least = min(choices, key=lambda choice: choice.bytes_per_sample)
        return (
            f"store {least.name}: answers of one token come from the table alone, which every level has, so that "
            "`trio-ray evaluate` reads no prefix and a GPU computes nothing"
        )
    good = [choice for choice in choices if choice.quality != "poor"]
    timed = [(choice.use_s, choice) for choice in good if choice.use_s is not None]
    if not timed:
        least = min(good, key=lambda c: c.pruned.break_even_gb_per_s or float("inf"))
        if least.pruned.break_even_gb_per_s is None:
            return "recompute: at any bandwidth a pruned prefill takes no longer than what a stored prefix leaves to do"
        return (
            f"store {least.name} where a replica reads more than {least.pruned.break_even_gb_per_s:.3g} GB/s, else "
            "recompute; give --bandwidth for an answer"
        )
    seconds, best = min(timed, key=lambda pair: pair[0])
    pruned, unpruned = best.pruned, best.unpruned
    if pruned.break_even_reuses is None:
        return (
            f"recompute: a pruned prefill takes {1e3 * pruned.recompute_s:.3g} ms, and even the fastest stored choice "
            f"({best.name}) {1e3 * seconds:.3g} ms at this bandwidth"
        )
    sentence = (
        f"store {best.name}: a use takes {1e3 * seconds:.3g} ms instead of {1e3 * pruned.recompute_s:.3g} ms pruned "
        f"and {1e3 * unpruned.recompute_s:.3g} ms unpruned, and precomputing has paid from "
        f"{pruned.break_even_reuses:.3g} uses on"
    )
    if pruned.break_even_reuses_by_cost is not None:
        sentence += f" in time, {pruned.break_even_reuses_by_cost:.3g} in money"
    sentence += (
        f"; with answers of {use.answer_tokens} tokens and {use.questions} questions behind a prefix it gives "
        f"{pruned.times_faster:.3g} times as many answers a second as pruning anew, {unpruned.times_faster:.3g} times "
        "as many as without pruning"
    )
    kv = [choice for _, choice in timed if choice.level == "kv"]
    if kv and all(choice.pruned.break_even_reuses is None for choice in kv):
        sentence += "; do not store keys and values: recomputing them is faster than reading them at this bandwidth"
    lossless = [(seconds, choice) for seconds, choice in timed if choice.quality == "exact"]
    if best.quality != "exact" and lossless:
        seconds, exact = min(lossless, key=lambda pair: pair[0])
        sentence += (
            f"; the codec is lossy, and the fastest choice that is not ({exact.name}) takes {1e3 * seconds:.3g} ms"
        )
    return sentence
