"""An estimate in words and tables."""

from __future__ import annotations

from collections.abc import Sequence

from trio_ray.estimate.choices import Choice
from trio_ray.estimate.estimate import Estimate
from trio_ray.study import shown, shown_bytes, table


def text(estimate: Estimate) -> str:
    """The whole report, in Markdown, its last line the verdict."""
    return "\n".join(
        [
            *_corpus_lines(estimate),
            *_job_lines(estimate),
            f"restoring: {estimate.restore_note}",
            "",
            _choice_table(estimate.choices),
            "",
            estimate.verdict,
        ]
    )


def _corpus_lines(estimate: Estimate) -> list[str]:
    corpus, times = estimate.corpus, estimate.times
    count = f"{corpus.samples:,}" if corpus.samples_exact else f"about {corpus.samples:,}"
    bad = ", ".join(f"{number} {reason}" for reason, number in corpus.bad_drawn.items())
    lines = [
        f"corpus: {count} samples in {corpus.shards} shards, {shown_bytes(corpus.input_bytes)}; "
        f"{corpus.drawn_samples} drawn: "
        f"{corpus.rows_per_sample:.0f} rows, {corpus.image_tokens_per_sample:.0f} image tokens, "
        f"{corpus.encoded_images_per_sample:.2f} images and {corpus.encoded_tiles_per_sample:.1f} tiles through the "
        f"vision tower a sample; {100 * corpus.bad_share:.1f} % bad{f' ({bad})' if bad else ''}"
    ]
    if corpus.passed_over_drawn:
        lines.append(f"{corpus.passed_over_drawn} of the drawn rows have no image and are passed over")
    if corpus.unreadable_shards:
        lines.append(f"{corpus.unreadable_shards} shards cannot be read and are left out")
    how = "measured here" if times.source == "measured" else "from counted FLOP and the given speed"
    lines.append(
        f"a sample, {how}: {1e3 * times.precompute_s:.3g} ms to precompute "
        f"({1 / times.precompute_s:.3g} samples/s a replica), {1e3 * times.pruned_s:.3g} ms to recompute pruned, "
        f"{1e3 * times.unpruned_s:.3g} ms unpruned; {estimate.work.pruned / 1e12:.3g} and "
        f"{estimate.work.unpruned / 1e12:.3g} TFLOP"
    )
    return lines


def _job_lines(estimate: Estimate) -> list[str]:
    job, prices = estimate.job, estimate.prices
    stored = f"{job.level} {job.codec}" if job.codec else job.level
    lines = [
        f"job ({stored}): {estimate.corpus.stored_samples:,} samples, {shown_bytes(job.bytes_per_sample)} each, "
        f"{shown_bytes(job.total_bytes)} in {job.parts:,} parts; "
        f"{job.gpu_hours:.3g} GPU-hours, {duration(job.wall_s)} on "
        f"{job.replicas} replicas",
        *([] if estimate.codec_note is None else [f"codec: {estimate.codec_note}"]),
    ]
    costs = (
        ("compute", job.compute_cost, ""),
        ("storage", job.storage_cost, f" for {prices.months:g} months"),
    )
    known = [f"{name} ${cost:,.2f}{note}" for name, cost, note in costs if cost is not None]
    missing = [name for name, cost, _ in costs if cost is None]
    lines.append(
        f"cost: {', '.join(known) or 'not computed'}" + (f" (no price given for {', '.join(missing)})" * bool(missing))
    )
    return lines


def _choice_table(choices: Sequence[Choice]) -> str:
    """At most 100 columns wide. `read` and `then` are ms of a use; `x` is answers a second, times those of recomputing;
    reading pays above `GB/s`, precomputing from `uses` on, against a pruned prefill.
    """
    return table(
        choices,
        {
            "store": _name,
            "a sample": lambda choice: shown_bytes(choice.bytes_per_sample),
            "in all": lambda choice: shown_bytes(choice.total_bytes),
            "read": lambda choice: shown(choice.read_s, ".3g", times=1e3),
            "then": lambda choice: shown(choice.finish_s, ".3g", times=1e3),
            "x pruned": lambda choice: shown(choice.pruned.times_faster, ".3g"),
            "x unpruned": lambda choice: shown(choice.unpruned.times_faster, ".3g"),
            "GB/s": lambda choice: shown(choice.pruned.break_even_gb_per_s, ".3g") or "never",
            "uses": _uses,
        },
    )


def _name(choice: Choice) -> str:
    return f"{choice.name}{' (poor)' if choice.quality == 'poor' else ''}"


def _uses(choice: Choice) -> str | None:
    """From which use on precomputing has paid in time."""
    against = choice.pruned
    if against.break_even_gb_per_s is None:
        return "never"
    return None if choice.read_s is None else shown(against.break_even_reuses, ".3g") or "never"


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"
