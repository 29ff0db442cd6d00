"""Results as records, as a table and as a plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.lab.results import asked, result
from trio_ray.evaluate.scoring.bootstrap import interval
from trio_ray.lab.accuracy.report import plot, study, summarise

RIGHT = {"all tokens": [1, 1, 1, 1, 1, 1], "trio": [1, 0, 1, 1, 1, 0], "random": [0, 0, 1, 0, 1, 0]}


def test_records_count_right_answers_over_all_and_by_group() -> None:
    questions = asked()
    whole, trio = summarise(
        [result("all tokens", 1.0, RIGHT["all tokens"]), result("trio", 0.5, RIGHT["trio"])], questions
    )
    assert (whole["method"], whole["retention"], whole["tokens"], whole["questions"]) == ("all tokens", 1.0, 200.0, 6)
    assert (whole["accuracy"], whole["interval"]) == (1.0, [1.0, 1.0])
    assert trio["accuracy"] == pytest.approx(4 / 6)
    assert trio["interval"] == list(interval(result("trio", 0.5, RIGHT["trio"]).right, [0, 0, 1, 1, 2, 2]))
    assert trio["by_group"] == {
        "type color": {"accuracy": pytest.approx(2 / 3), "questions": 3},
        "type count": {"accuracy": 1.0, "questions": 1},
        "type text": {"accuracy": 0.5, "questions": 2},
        "fine": {"accuracy": 0.5, "questions": 2},
        "coarse": {"accuracy": 0.75, "questions": 4},
    }
    assert json.loads(json.dumps([whole, trio])) == [whole, trio]


def test_a_group_that_nobody_asked_about_is_left_out() -> None:
    questions = [question for question in asked() if not question.fine]
    (record,) = summarise([result("trio", 0.5, [1, 1, 0, 1])], questions)
    assert set(record["by_group"]) == {"type color", "type count"}


def test_the_table_has_a_line_a_result_and_a_column_a_group() -> None:
    records = summarise([result("all tokens", 1.0, RIGHT["all tokens"]), result("trio", 0.111, RIGHT["trio"])], asked())
    low, high = records[1]["interval"]
    lines = study(records).text.splitlines()
    assert lines[0] == (
        "| method | retention | tokens | of real | of nominal | a view | prefills/s | accuracy | 95 % interval "
        "| color | count | text | fine | coarse |"
    )
    assert lines[2].startswith(
        "| all tokens | 100.0 % | 200.0 | 100.0 % | 62.5 % | 50.0 | 3.0 | **100.0** | 100.0 - 100.0 | 100.0 |"
    )
    shown = f"{100 * low:.1f} - {100 * high:.1f}"
    assert lines[3] == (
        "| trio | 11.1 % | 22.2 | 11.1 % | 6.9 % | 5.5 | 3.0 | **66.7** "
        f"| {shown} | 66.7 | 100.0 | 50.0 | 50.0 | 75.0 |"
    )
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("retentions", [(0.111,), (0.111, 0.333)])
def test_the_plot_is_a_picture_that_differs_with_the_results(tmp_path: Path, retentions: tuple[float, ...]) -> None:
    """Bars where there is one retention, else lines."""
    pictures = []
    for name in ("trio", "random"):
        results = [result("all tokens", 1.0, RIGHT["all tokens"], 20)]
        results += [result("trio", retention, RIGHT[name], 20) for retention in retentions]
        file = tmp_path / f"{name}.png"
        plot(summarise(results, asked(20)), str(file))
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert picture.width > 900
            pictures.append(picture.tobytes())
    assert pictures[0] != pictures[1]
