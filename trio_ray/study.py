"""What a study or a benchmark found: tables as Markdown, records as JSON, a plot, all under one name in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")

Columns = Mapping[str, Callable[[R], object]]
"""By the head of each column: the cell of a row."""


def table(rows: Iterable[R], columns: Columns[R]) -> str:
    """A Markdown table; a number that is None is a dash."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (cell(row) for cell in columns.values())
        lines.append(f"| {' | '.join('-' if cell is None else str(cell) for cell in cells)} |")
    return "\n".join(lines)


def shown(value: float | None, form: str, unit: str = "", times: float = 1.0) -> str | None:
    """`times * value` in a format such as `.1f`, behind it the unit; None where there is no value."""
    return None if value is None else f"{times * value:{form}}{unit}"


def shown_bytes(count: float) -> str:
    """A number of bytes, or a difference of two, in a unit that suits it."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        name: of its files.
        record: everything, as JSON has it.
        text: tables, and what has to be said beside them, as Markdown.
        draw: draws the plot into a file whose ending gives the format; None where there is nothing to draw.
    """

    name: str
    record: Any
    text: str
    draw: Callable[[str], None] | None = None

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.json, NAME.md and NAME.png; a file that was there stays whole until the new one is."""
        files = {".json": json.dumps(self.record, indent=1), ".md": self.text}
        written = []
        for ending, content in files.items():
            beside = folder / f"{self.name}{ending}.new"
            beside.write_text(content + "\n", encoding="utf-8")
            written.append(beside.replace(folder / f"{self.name}{ending}"))
        if self.draw is not None:
            written.append(folder / f"{self.name}.png")
            self.draw(str(written[-1]))
        return written
