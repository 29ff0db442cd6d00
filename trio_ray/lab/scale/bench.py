"""Caches of several sizes, made and measured one after the other; how each cost grows is fitted over the sizes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from trio_ray.config import S3Config
from trio_ray.lab.jobs.own_process import in_own_process
from trio_ray.lab.scale.measure import NEED_TABLES, WHAT
from trio_ray.lab.scale.synthetic import Synthetic
from trio_ray.study import Columns, Study, shown, table

MODULE = "trio_ray.lab.scale.measure"


@dataclass(frozen=True)
class ScaleBench:
    """What to make and measure.

    Attributes:
        output: each size gets a folder or prefix in it, which stays; one that is there is measured as it is.
        s3: how S3 is reached.
        sizes: numbers of parts, ascending.
        rows: samples of a part.
        prefix_bytes: of a sample.
        tables_up_to: parts of the largest cache whose tables are written; larger ones have records and locators alone.
        what: the measurements.
    """

    output: str
    s3: S3Config
    sizes: tuple[int, ...]
    rows: int
    prefix_bytes: int
    tables_up_to: int
    what: tuple[str, ...] = WHAT


def run_bench(
    bench: ScaleBench, on_step: Callable[[str], None], keep: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Make and measure; `keep` gets the record after each measurement."""
    record: dict[str, Any] = {"rows": bench.rows, "prefix_bytes": bench.prefix_bytes, "sizes": []}
    for parts in bench.sizes:
        uri, tables = f"{bench.output.rstrip('/')}/{parts}", parts <= bench.tables_up_to
        on_step(f"{parts:,} parts: making")
        began = time.perf_counter()
        Synthetic(uri, bench.s3, bench.rows, bench.prefix_bytes, tables).build(range(parts))
        size: dict[str, Any] = {"parts": parts, "tables": tables, "made_s": time.perf_counter() - began, "found": {}}
        record["sizes"].append(size)
        for what in bench.what:
            if not tables and what in NEED_TABLES:
                continue
            on_step(f"{parts:,} parts: {what}")
            order = {
                "what": what,
                "uri": uri,
                "s3": bench.s3.model_dump(mode="json"),
                "parts": parts,
                "rows": bench.rows,
                "prefix_bytes": bench.prefix_bytes,
                "tables": tables,
            }
            size["found"][what] = in_own_process(MODULE, f"measurement {what} of {parts} parts", order)
            keep(record)
    return record


def growth(parts: Sequence[int], costs: Sequence[float]) -> float | None:
    """The exponent of the power of the number of parts that costs grow by, by least squares; None of one size."""
    points = [(math.log(count), math.log(cost)) for count, cost in zip(parts, costs, strict=True) if cost > 0]
    if len(points) < 2:
        return None
    logs = np.array(points)
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def study(record: Mapping[str, Any]) -> Study:
    """A table with a line a measurement and size, and one of how they grow."""
    lines = [
        {"what": what, "parts": size["parts"], **found}
        for what in WHAT
        for size in record["sizes"]
        if (found := size["found"].get(what)) is not None
    ]
    fits = []
    for what in WHAT:
        own = [line for line in lines if line["what"] == what]
        if len(own) > 1:
            parts = [line["parts"] for line in own]
            fits.append(
                {
                    "what": what,
                    **{name: growth(parts, [line[name] for line in own]) for name in ("seconds", "memory", "bytes")},
                    "requests": growth(parts, [line["gets"] + line["lists"] + line["writes"] for line in own]),
                }
            )
    texts = [
        f"Parts of {record['rows']:,} samples; prefixes of {record['prefix_bytes']:,} bytes. Requests and bytes are "
        "for one key, prefix or part where a measurement has many of them.",
        "",
        table(lines, _COLUMNS),
        "",
        "Exponent of growth with the number of parts (1: in proportion):",
        "",
        table(fits, _FITS),
    ]
    return Study("scale", record, "\n".join(texts))


Line = Mapping[str, Any]


def _each(name: str) -> Callable[[Line], object]:
    return lambda line: shown(line[name] / line.get("of", 1), ".2f" if "of" in line else ",.0f")


_COLUMNS: Columns[Line] = {
    "measurement": lambda line: line["what"],
    "parts": lambda line: f"{line['parts']:,}",
    "seconds": lambda line: shown(line["seconds"], ".3f"),
    "CPU s": lambda line: shown(line["cpu_s"], ".3f"),
    "memory, MB": lambda line: shown(line["memory"], ",.0f", times=1e-6),
    "GET": _each("gets"),
    "LIST": _each("lists"),
    "PUT": _each("writes"),
    "read, KB": lambda line: shown(line["bytes"] / line.get("of", 1), ",.1f", times=1e-3),
    "of the prefixes' bytes": lambda line: (
        shown(line["bytes"] / line["of_bytes"], ".3f") if "of_bytes" in line else None
    ),
    "pickle, KB": lambda line: shown(line.get("size"), ",.0f", times=1e-3),
}


def _exponent(name: str, line: Line) -> object:
    return shown(line[name], ".2f")


_FITS: Columns[Line] = {
    "measurement": lambda line: line["what"],
    **{name: partial(_exponent, name) for name in ("seconds", "memory", "requests", "bytes")},
}
