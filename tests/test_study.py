"""Tables, records and plots of all studies are written alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trio_ray.study import Study, shown, table


def test_a_table_has_a_line_a_row_and_a_dash_where_nothing_is_known() -> None:
    rows = [("raw", 1.0), ("int4", None)]
    lines = table(rows, {"codec": lambda row: row[0], "GB/s": lambda row: shown(row[1], ".1f")}).splitlines()
    assert lines == ["| codec | GB/s |", "|---|---|", "| raw | 1.0 |", "| int4 | - |"]


def test_a_number_is_shown_in_its_unit() -> None:
    assert shown(0.5, ".1f", " %", times=100) == "50.0 %"
    assert shown(None, ".1f", " %") is None


def test_a_study_leaves_json_text_and_plot_and_what_was_there_stays_where_that_fails(tmp_path: Path) -> None:
    def draw(path: str) -> None:
        Path(path).write_bytes(b"drawn")

    written = Study("found", [{"a": 1}], "| a |", draw).write(tmp_path)
    assert [file.name for file in written] == ["found.json", "found.md", "found.png"]
    assert json.loads(written[0].read_text()) == [{"a": 1}]
    assert written[1].read_text() == "| a |\n"
    with pytest.raises(TypeError):
        Study("found", object(), "other").write(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["found.json", "found.md", "found.png"]
    assert json.loads(written[0].read_text()) == [{"a": 1}]
