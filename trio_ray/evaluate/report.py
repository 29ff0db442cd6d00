"""An evaluation's metrics as a few lines to read."""

from __future__ import annotations

from typing import Any


def report(metrics: dict[str, Any]) -> str:
    """What `run_evaluation` returned, as text."""
    why = ", ".join(f"{count} {outcome}" for outcome, count in sorted(metrics["unanswered"].items()))
    seconds = metrics["seconds"]
    lines = [
        f"{metrics['answered']} of {metrics['questions']} questions answered" + (f" ({why})" if why else ""),
        f"{seconds['all']:.1f} s, of which {seconds['decoding']:.1f} s decoding and "
        f"{seconds['waiting_for_prefixes']:.1f} s waiting for prefixes (sums over replicas); "
        f"{metrics['read_bytes']:,} bytes read",
    ]
    if metrics["without_truth"]:
        lines.append(f"{metrics['without_truth']} answers have no true answer to be held against")
    parts = {"overall": metrics["overall"], **metrics.get("by_category", {})}
    lines += [f"{name}: {_scores(scores)}" for name, scores in parts.items() if scores["questions"]]
    return "\n".join(lines)


def _scores(scores: dict[str, Any]) -> str:
    low, high = scores["interval"]
    further = {name: value for name, value in scores.items() if name not in ("questions", "accuracy", "interval")}
    more = "".join(f", {name} {100 * value:.1f}" for name, value in further.items())
    return (
        f"accuracy {100 * scores['accuracy']:.1f} % (95 % interval {100 * low:.1f} - {100 * high:.1f}){more}, "
        f"{scores['questions']} questions"
    )
