"""Options are checked before anything is measured: numbers, and the folders and files of results."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from trio_ray.cli import main
from trio_ray.commands._options import check_file, make_folder, number, whole
from trio_ray.errors import ConfigError


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    for _ in range(2):
        assert make_folder("--out", str(tmp_path / "a" / "b")).is_dir()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_what_cannot_be_a_folder_is_refused_by_its_option(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"^--out: .*{name} cannot be made a folder"):
        make_folder("--out", str(tmp_path / name))


def test_a_file_needs_a_folder_and_must_be_none(tmp_path: Path) -> None:
    check_file("--json", str(tmp_path / "plan.json"))
    with pytest.raises(ConfigError, match=r"^--json: there is no folder .*gone"):
        check_file("--json", str(tmp_path / "gone" / "plan.json"))
    with pytest.raises(ConfigError, match=r"^--json: .* is a folder"):
        check_file("--json", str(tmp_path))


@pytest.mark.parametrize(
    "command",
    [
        ["lab", "accuracy"],
        ["lab", "codecs"],
        ["lab", "fidelity"],
        ["lab", "agreement"],
        ["lab", "prefill"],
        ["lab", "job", "--output", "jobs"],
        ["demo"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_every_command_refuses_one_before_it_measures(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    option = "--folder" if command == ["demo"] else "--out"
    assert main([*command, option, str(tmp_path / "file")]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"trio-ray: {option}: ")
    assert shown.out == ""


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (whole(1), "0", "must be at least 1"),
        (number(above=0, most=1), "0", "must be above 0 and at most 1"),
        (number(above=0, most=1), "nan", "must be above 0 and at most 1"),
        (number(above=0, below=1), "1", "must be above 0 and below 1"),
        (number(least=0), "inf", "must be at least 0"),
    ],
    ids=str,
)
def test_a_number_out_of_bounds_is_refused_with_the_bounds(kind: Callable[[str], float], text: str, words: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=words):
        kind(text)


def test_a_number_within_bounds_is_taken() -> None:
    assert (whole(1)("1"), number(above=0, most=1)("1"), number()("-1e3")) == (1, 1.0, -1000.0)
