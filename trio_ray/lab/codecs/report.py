"""What codecs cost, as records, as Markdown tables and as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trio_ray.calibration.codec_loss import IN_MEMORY, UNROUNDED
from trio_ray.evaluate.scoring.bootstrap import interval
from trio_ray.lab.codecs.coded_questions import WAYS, Answered, CodecResult
from trio_ray.lab.codecs.continued_text import WITHOUT_PREFIX, TextResult
from trio_ray.study import Columns, table

Record = dict[str, Any]

CONTROLS = (IN_MEMORY, UNROUNDED, WITHOUT_PREFIX)


def question_records(results: Sequence[CodecResult], scenes: Sequence[int]) -> list[Record]:
    """One record for each setting and codec; `scenes` says for each question which image it is about."""
    reference = {(r.setting.name, r.setting.retention): r for r in results if r.name == IN_MEMORY}
    records = []
    for result in results:
        baseline = reference[result.setting.name, result.setting.retention]
        records.append(
            {
                "method": result.setting.name,
                "retention": result.setting.retention,
                "codec": result.name,
                "questions": len(scenes),
                **_size(result.sizes, result.values),
                "ratio_to_unpruned": 2 * sum(result.unpruned) / sum(result.sizes),
                "ways": {way: _way(result.answers[way], baseline.answers[way], scenes) for way in WAYS},
            }
        )
    return records


def text_records(results: Sequence[TextResult]) -> list[Record]:
    """One record for each codec."""
    (baseline,) = [np.array(result.surprise) for result in results if result.name == IN_MEMORY]
    records = []
    for result in results:
        surprise = np.array(result.surprise)
        low, high = interval((surprise - baseline).mean(1), range(len(surprise)))
        same = np.array([one.same for one in result.agreement])
        records.append(
            {
                "codec": result.name,
                "passages": len(surprise),
                "tokens": surprise.size,
                **_size(result.sizes, result.values),
                "perplexity": float(np.exp(surprise.mean())),
                "change": float(np.exp(surprise.mean() - baseline.mean()) - 1),
                "change_interval": [float(np.exp(low) - 1), float(np.exp(high) - 1)],
                "kl": float(np.mean([one.kl for one in result.agreement])),
                "same": float(same.mean()),
                "same_interval": list(wilson(int(same.sum()), same.size)),
            }
        )
    return records


def failed_controls(records: Sequence[Record]) -> list[str]:
    """Rows of the codec `raw` that differ in anything from states that were never stored: none may."""
    failed = []
    for record in records:
        measures = record["ways"].values() if "ways" in record else [record]
        if record["codec"] == "raw" and any(m["kl"] != 0 or m["same"] != 1 for m in measures):
            failed.append(f"{record['method']} at {record['retention']:.3g}" if "ways" in record else "continued text")
    return failed


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share, which is none of zero width where all or none hit."""
    share, slack = hits / count, z * z / count
    middle, width = share + slack / 2, z * np.sqrt(share * (1 - share) / count + slack / (4 * count))
    return float((middle - width) / (1 + slack)), float((middle + width) / (1 + slack))


def tables(questions: Sequence[Record], texts: Sequence[Record]) -> list[str]:
    """The questions' table and the texts', whichever was measured."""
    found = [table(questions, QUESTION_COLUMNS)] if questions else []
    return found + ([table(texts, TEXT_COLUMNS)] if texts else [])


def _size(sizes: Sequence[int], values: Sequence[int]) -> Record:
    return {
        "bytes": sum(sizes) / len(sizes),
        "bits": 8 * sum(sizes) / sum(values),
        "ratio": 2 * sum(values) / sum(sizes),
    }


def _way(answers: Sequence[Answered], baseline: Sequence[Answered], scenes: Sequence[int]) -> Record:
    right = np.array([answer.right for answer in answers], float)
    lost = np.array([answer.right for answer in baseline], float) - right
    first = [answer.agreement.same[0] for answer in answers]
    whole = [all(answer.agreement.same) for answer in answers]
    return {
        "accuracy": float(right.mean()),
        "lost": float(lost.mean()),
        "lost_interval": list(interval(lost, scenes)),
        "first_same": float(np.mean(first)),
        "first_interval": list(wilson(sum(first), len(first))),
        "same": float(np.mean(whole)),
        "same_interval": list(wilson(sum(whole), len(whole))),
        "kl_first": float(np.mean([answer.agreement.kl[0] for answer in answers])),
        "kl": float(np.mean([kl for answer in answers for kl in answer.agreement.kl])),
    }


def _lost(record: Record) -> str:
    question = record["ways"]["question"]
    low, high = question["lost_interval"]
    return f"{_plain(100 * question['lost'], 1)} ({_plain(100 * low, 1)} to {_plain(100 * high, 1)})"


def _same(record: Record) -> str:
    question = record["ways"]["question"]
    surely, perhaps = question["same_interval"]
    return f"{100 * question['same']:.1f} % ({100 * surely:.1f} - {100 * perhaps:.1f})"


def _change(record: Record) -> str:
    low, high = record["change_interval"]
    return f"{_plain(100 * record['change'], 2)} % ({_plain(100 * low, 2)} to {_plain(100 * high, 2)})"


def _plain(number: float, digits: int) -> str:
    """The number, without the sign of a negative zero."""
    text = f"{number:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def _kl(nats: float) -> str:
    return "0" if nats == 0 else f"{nats:.5f}" if abs(nats) >= 5e-6 else f"{nats:.0e}"


QUESTION_COLUMNS: Columns[Record] = {
    "method": lambda record: record["method"],
    "retention": lambda record: f"{100 * record['retention']:.1f} %",
    "codec": lambda record: record["codec"],
    "bits a value": lambda record: f"{record['bits']:.2f}",
    "KB a sample": lambda record: f"{record['bytes'] / 1000:.1f}",
    "of 16 bit": lambda record: f"{record['ratio']:.1f}x",
    "of unpruned 16 bit": lambda record: f"{record['ratio_to_unpruned']:.0f}x",
    "accuracy": lambda record: f"{100 * record['ways']['question']['accuracy']:.1f}",
    "points lost (95 %)": _lost,
    "first token equal": lambda record: f"{100 * record['ways']['question']['first_same']:.1f} %",
    "answer equal (95 %)": _same,
    "KL first token": lambda record: _kl(record["ways"]["question"]["kl_first"]),
    "KL all tokens": lambda record: _kl(record["ways"]["question"]["kl"]),
    "last row: answer equal": lambda record: f"{100 * record['ways']['last row']['same']:.1f} %",
    "last row: KL": lambda record: _kl(record["ways"]["last row"]["kl"]),
}
TEXT_COLUMNS: Columns[Record] = {
    "codec": lambda record: record["codec"],
    "bits a value": lambda record: f"{record['bits']:.2f}",
    "KB a passage": lambda record: f"{record['bytes'] / 1000:.0f}",
    "of 16 bit": lambda record: f"{record['ratio']:.1f}x",
    "perplexity": lambda record: f"{record['perplexity']:.3f}",
    "change (95 %)": _change,
    "KL a token": lambda record: _kl(record["kl"]),
    "most likely token equal": lambda record: f"{100 * record['same']:.2f} %",
}
