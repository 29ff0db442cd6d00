"""A record of reading as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def markdown(record: Mapping[str, Any]) -> str:
    """A line on where, and a table for each part of each of the shapes."""
    machine = record["machine"]
    texts = [f"{machine['device']} with {machine['cpus']} CPUs, {record['date'][:10]}."]
    for shapes, results in record["shapes"].items():
        for part, found in results.items():
            texts += [f"## {shapes}: {_TITLES[part]}", *_WRITERS[part](found)]
    return "\n\n".join(texts)


def _memory(found: Mapping[str, Any]) -> list[str]:
    columns: dict[str, Callable[[Any], str]] = {
        "samples/s": lambda one: f"{one['samples_per_s']:,.0f}",
        "times prefill": lambda one: f"{one['times_prefill']:.1f}",
        "GB/s of 16 bit": lambda one: f"{one['gb_per_s_16bit']:.1f}" if "gb_per_s_16bit" in one else "",
        "MB a sample": lambda one: f"{one['stored_mb']:.2f}" if "stored_mb" in one else "",
        "smaller than 16 bit": lambda one: f"{one['ratio']:.1f}x" if "ratio" in one else "",
    }
    rows = [[name, *(write(one) for write in columns.values())] for name, one in found.items()]
    codecs = {name: one["stages_ms"] for name, one in found.items() if "stages_ms" in one}
    stages = list(dict.fromkeys(stage for own in codecs.values() for stage in own))
    return [
        _table(["", *columns], rows),
        "Milliseconds a sample of one batch, each stage alone and waited for. Checks compare checksums and headers; "
        "`restore` is copy, lossless stage and inverse together.",
        _table(
            ["", *stages],
            [
                [name, *(f"{own[stage]:.3f}" if stage in own else "" for stage in stages)]
                for name, own in codecs.items()
            ],
        ),
    ]


def _store(found: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            where,
            codec,
            what,
            f"{one['samples_per_s']:,.0f}",
            f"{one['gb_per_s']:.2f}",
            f"{one['mb_per_range']:.1f}",
            f"{one['cpu_ms_per_range']:.2f}",
        ]
        for where, codecs in found.items()
        for codec, contestants in codecs.items()
        for what, one in contestants.items()
    ]
    return [
        _table(["from", "codec", "", "samples/s", "GB/s stored", "MB a range", "process CPU ms a range"], rows),
        "`restore` ends with keys and values on the device; `fetch and check` with compared checksums in host memory; "
        "the others are bare clients that read the same ranges and throw them away.",
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_TITLES = {"memory": "restored from host memory", "store": "restored from a store"}
_WRITERS: dict[str, Callable[[Any], list[str]]] = {"memory": _memory, "store": _store}
