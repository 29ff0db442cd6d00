"""docs/structure.md is true: its files and rooms exist, and its walks are as short as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "trio_ray"
PAGE = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
WALKS = re.findall(r"^- \*\*[^*]+, (\d+) files\.\*\* (.*?)(?=^-|^$)", PAGE, re.DOTALL | re.MULTILINE)
FILE = re.compile(r"`([\w/]+\.py)`")


def test_every_file_and_folder_that_it_names_exists() -> None:
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", PAGE))
    assert len(named) > 50
    assert [name for name in sorted(named) if not (PACKAGE / name).exists() and not (ROOT / name).exists()] == []


def test_every_room_has_its_line() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"commands", "bundled"}
    assert {room for room in rooms if not re.search(rf"^    {room}/ ", PAGE, re.MULTILINE)} == set()


@pytest.mark.parametrize(("walk", "most"), [(0, 5), (1, 20), (2, 10)], ids=["setting", "image", "key"])
def test_a_walk_is_short_and_goes_from_file_to_file(walk: int, most: int) -> None:
    said, text = WALKS[walk]
    files = FILE.findall(text)
    assert len(files) == int(said) <= most
    sources = {file: (PACKAGE / file).read_text(encoding="utf-8") for file in files}
    for file in files[1:]:
        module = "trio_ray." + file.removesuffix(".py").replace("/", ".")
        words = (f"from {module} import", f"from {module.rpartition('.')[0]} import {module.rpartition('.')[2]}")
        found_by_name = "/selectors/" in file or "/codecs/" in file
        imported = any(word in source for other, source in sources.items() if other != file for word in words)
        assert imported or found_by_name, f"{file} is imported by no other file of the walk"


def test_it_takes_two_pages() -> None:
    assert len(PAGE.splitlines()) <= 110
