"""The numbers of the codec tables, counted by hand on made-up results."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from trio_ray.calibration.codec_loss import IN_MEMORY, Agreement
from trio_ray.lab.accuracy.accuracy import Setting
from trio_ray.lab.accuracy.methods import method_config
from trio_ray.lab.codecs.coded_questions import WAYS, Answered, CodecResult
from trio_ray.lab.codecs.continued_text import TextResult
from trio_ray.lab.codecs.plot import plot
from trio_ray.lab.codecs.report import (
    Record,
    failed_controls,
    question_records,
    tables,
    text_records,
    wilson,
)

SETTING = Setting("trio", 0.111, method_config("trio", 0.111))
SCENES = [0, 0, 1, 1]


def answers(right: list[int], first: list[int], whole: list[int], kl: float) -> list[Answered]:
    """Answers of two tokens, the first of which has twice the divergence `kl`, the other none."""
    return [
        Answered(Agreement((2 * kl, 0.0), (bool(f), bool(w))), bool(r))
        for r, f, w in zip(right, first, whole, strict=True)
    ]


def result(name: str, coded: list[Answered], size: int) -> CodecResult:
    return CodecResult(SETTING, name, dict.fromkeys(WAYS, coded), [size] * 4, [1000] * 4, [6000] * 4)


@pytest.fixture
def questions() -> list[Record]:
    same = answers([1, 1, 0, 1], [1] * 4, [1] * 4, 0.0)
    other = answers([1, 0, 1, 0], [1, 0, 1, 1], [1, 0, 1, 0], 0.25)
    return question_records(
        [result(IN_MEMORY, same, 2000), result("raw", same, 1600), result("int2", other, 250)], SCENES
    )


@pytest.fixture
def texts() -> list[Record]:
    equal, less = Agreement((0.0, 0.0), (True, True)), Agreement((0.1, 0.3), (True, False))
    return text_records(
        [
            TextResult(IN_MEMORY, [[1.0, 3.0], [2.0, 2.0]], [equal] * 2, [800] * 2, [400] * 2),
            TextResult("raw", [[1.0, 3.0], [2.0, 2.0]], [equal] * 2, [700] * 2, [400] * 2),
            TextResult("int2", [[1.2, 3.0], [2.2, 2.2]], [less] * 2, [100] * 2, [400] * 2),
        ]
    )


def test_a_codec_is_measured_against_16_bit_states_in_memory(questions: list[Record]) -> None:
    memory, raw, coarse = questions
    assert (memory["ratio"], memory["bits"], memory["ratio_to_unpruned"]) == (1.0, 16.0, 6.0)
    assert raw["ways"] == memory["ways"]
    assert (coarse["bytes"], coarse["bits"], coarse["ratio"], coarse["ratio_to_unpruned"]) == (250, 2.0, 8.0, 48.0)
    for way in WAYS:
        measured = coarse["ways"][way]
        assert (measured["accuracy"], measured["lost"]) == (0.5, 0.25)
        # Both scenes, or one of them twice: of the first half is lost, of the second nothing.
        assert measured["lost_interval"] == [0.0, 0.5]
        assert (measured["first_same"], measured["same"]) == (0.75, 0.5)
        assert measured["first_interval"] == list(wilson(3, 4))
        assert (measured["kl_first"], measured["kl"]) == (0.5, 0.25)
    assert json.loads(json.dumps(questions)) == questions


def test_perplexity_is_of_all_tokens_and_its_change_relative(texts: list[Record]) -> None:
    memory, raw, coarse = texts
    assert memory["perplexity"] == raw["perplexity"] == pytest.approx(math.exp(2.0))
    assert (raw["change"], raw["change_interval"], raw["kl"], raw["same"]) == (0.0, [0.0, 0.0], 0.0, 1.0)
    assert coarse["change"] == pytest.approx(math.exp(0.15) - 1)
    assert coarse["change_interval"] == pytest.approx([math.exp(0.1) - 1, math.exp(0.2) - 1])
    assert (coarse["kl"], coarse["same"], coarse["ratio"], coarse["bits"]) == (pytest.approx(0.2), 0.5, 8.0, 2.0)


def test_wilson_is_as_in_the_textbook_and_never_of_zero_width() -> None:
    assert wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_a_control_that_differs_in_anything_is_named(questions: list[Record], texts: list[Record]) -> None:
    assert failed_controls([*questions, *texts]) == []
    questions[1]["ways"]["last row"]["kl"] = 1e-12
    assert failed_controls([*questions, *texts]) == ["trio at 0.111"]
    texts[1]["same"] = 0.99
    assert failed_controls(texts) == ["continued text"]


def test_tables_have_a_line_a_codec(questions: list[Record], texts: list[Record]) -> None:
    first, second = tables(questions, texts)
    for table, count in ((first, 5), (second, 5)):
        lines = table.splitlines()
        assert len(lines) == count
        assert len({line.count("|") for line in lines}) == 1
    assert "| trio | 11.1 % | int2 | 2.00 | 0.2 | 8.0x | 48x | 50.0 | 25.0 (0.0 to 50.0) | 75.0 % |" in first
    assert "| int2 | 2.00 | 0 | 8.0x | 8.585 | 16.18 % (10.52 to 22.14) | 0.20000 | 50.00 % |" in second
    assert tables(questions, []) == [first]


@pytest.mark.parametrize("which", ["both", "questions", "texts"])
def test_the_plot_shows_what_was_measured(
    questions: list[Record], texts: list[Record], which: str, tmp_path: Path
) -> None:
    sizes = {"both": 3, "questions": 2, "texts": 1}
    file = tmp_path / "codecs.png"
    plot([] if which == "texts" else questions, [] if which == "questions" else texts, str(file))
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        # A panel is at least as wide as the legend.
        assert picture.width > 350 * (1 + sizes[which])
