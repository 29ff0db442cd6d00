"""`trio-ray gc` deletes what no commit names, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_ray.cli import main
from trio_ray.store.layout import data_name


@pytest.fixture
def orphan(cache: Path) -> Path:
    """What a killed attempt leaves."""
    shard = next((cache / "commits").glob("*/*")).name
    file = cache / data_name(shard, 7, "deadattempt", "tar")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a part")
    return file


def test_orphans_are_listed_then_deleted_and_the_cache_stays(
    cache: Path, orphan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in cache.rglob("*") if path.is_file()}
    assert main(["gc", str(cache), "--older-than", "0", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"{orphan.relative_to(cache)} (11 bytes)" in shown
    assert "1 objects, 11 bytes would be deleted" in shown
    assert {path for path in cache.rglob("*") if path.is_file()} == before
    assert main(["gc", str(cache), "--older-than", "0"]) == 0
    assert {path for path in cache.rglob("*") if path.is_file()} == before - {orphan}
    assert main(["verify", str(cache)]) == 0


def test_what_is_young_stays(cache: Path, orphan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", str(cache)]) == 0
    assert "0 objects" in capsys.readouterr().out
    assert orphan.exists()
