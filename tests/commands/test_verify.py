"""`trio-ray verify` names what is wrong and says so by its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_ray.cli import main


def verified(cache: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["verify", str(cache)])
    return status, capsys.readouterr().out


def some_tar(cache: Path) -> Path:
    return max((cache / "data").glob("*/*/*.tar"), key=lambda path: path.stat().st_size)


def test_a_sound_cache_passes_and_is_counted(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, shown = verified(cache, capsys)
    assert status == 0
    assert shown.startswith("ok: 12 samples and 1 quarantined in 4 parts")
    assert "0 damaged, 0 left by dead attempts, 0 shards given up, 0 incomplete" in shown


def test_a_flipped_byte_is_found_with_its_object_and_key(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = some_tar(cache)
    data = bytearray(tar.read_bytes())
    data[1500] ^= 1
    tar.write_bytes(data)
    status, shown = verified(cache, capsys)
    assert status == 1
    assert f"{tar.relative_to(cache)} key 's0050'" in shown
    assert "DAMAGED" in shown


def test_a_truncated_object_is_found(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = some_tar(cache)
    tar.write_bytes(tar.read_bytes()[:-1])
    status, shown = verified(cache, capsys)
    assert status == 1
    assert f"size: {tar.relative_to(cache)}" in shown


@pytest.mark.parametrize("ending", ["*.tar", "*[!e].parquet", "*.quarantine.parquet", "*.locators"])
def test_a_missing_object_is_found(cache: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    lost = next((cache / "data").glob(f"*/*/{ending}"))
    lost.unlink()
    status, shown = verified(cache, capsys)
    assert status == 1
    assert f"missing: {lost.relative_to(cache)}" in shown


def test_repair_says_what_it_cannot_cure(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache / "notes.txt").write_text("hello")
    some_tar(cache).unlink()
    assert main(["verify", str(cache), "--repair"]) == 1
    shown = capsys.readouterr().out
    assert "set aside: part " in shown
    assert "not repaired: notes.txt: is no part of a cache; move it elsewhere" in shown
    assert "1 parts set aside, " in shown
    assert len(list((cache / "aside").glob("*/*.json"))) == 1


def test_a_foreign_object_is_found(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache / "data" / "notes.txt").write_text("hello")
    status, shown = verified(cache, capsys)
    assert status == 1
    assert "foreign: data/notes.txt" in shown


def test_a_missing_end_is_no_damage_but_said(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next((cache / "commits").glob("*/a-*/00001.json")).unlink()
    status, shown = verified(cache, capsys)
    assert status == 0
    assert "incomplete: shard a-" in shown
    assert "4 left by dead attempts" in shown  # table, locators, tar and quarantine of the lost record


@pytest.mark.parametrize("part", [["--shards", "{}/3"], ["--sample", "0.5"]])
def test_a_share_of_the_shards_can_be_read(cache: Path, capsys: pytest.CaptureFixture[str], part: list[str]) -> None:
    """All shares together are the cache; a sample is the same whenever it is drawn."""
    counted = []
    for share in (1, 2, 3):
        assert main(["verify", str(cache), *(word.format(share) for word in part)]) == 0
        counted.append(int(capsys.readouterr().out.split()[1]))
    assert sum(counted) == 12 if "--shards" in part else len(set(counted)) == 1


@pytest.mark.parametrize("part", [["--shards", "4/3"], ["--shards", "x"], ["--sample", "0"]])
def test_a_share_that_is_none_is_refused(cache: Path, part: list[str]) -> None:
    assert main(["verify", str(cache), *part]) == 2


def test_what_is_no_cache_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, shown = verified(tmp_path, capsys)
    assert status == 1
    assert "dataset: dataset.json" in shown


def test_no_threads_are_refused(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(cache), "--threads", "0"]) == 2
    assert capsys.readouterr().err == "trio-ray: --threads: 0 must be at least 1 (see trio-ray verify --help)\n"
