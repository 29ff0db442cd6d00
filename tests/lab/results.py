"""Made-up results whose every number can be counted by hand."""

from __future__ import annotations

import numpy as np

from trio_ray.lab.accuracy.accuracy import Result, Setting
from trio_ray.lab.accuracy.methods import method_config
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.source.sample import Sample, Turn

KINDS = [("color", False), ("text", True), ("color", False), ("count", False), ("text", True), ("color", False)]


def asked(repeat: int = 1) -> list[HeldOutQuestion]:
    """Six questions about three scenes, two of them fine, `repeat` times over."""
    return [
        HeldOutQuestion(
            Sample(f"q{number}", number, (b"",), (Turn("user", "?"),), "yes"), number // 2, *KINDS[number % 6]
        )
        for number in range(6 * repeat)
    ]


def result(name: str, retention: float, right: list[int], repeat: int = 1) -> Result:
    """Answers of which those marked 1 are right."""
    marks = np.array(right * repeat, bool)
    answers = ["yes" if mark else "no" for mark in marks]
    config = method_config(name if name != "all tokens" else "trio", retention)
    return Result(Setting(name, retention, config), answers, marks, 200 * retention, 200.0, 4.0, 2.0, 320)
