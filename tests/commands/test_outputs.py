"""Folders and files of results are made or looked at before anything is measured for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_ray.cli import main
from trio_ray.commands.outputs import check_file, make_folder
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
        ["evaluate"],
        ["evaluate", "--codecs"],
        ["fidelity"],
        ["agreement"],
        ["bench-codecs"],
        ["bench"],
        ["bench-job", "--output", "jobs"],
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
