"""`trio-ray inspect` says what is stored and draws which image tokens were kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.corpora import samples, write_tar
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cli import main
from trio_ray.report.overlay import KEPT


def test_a_cache_is_summed_up(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(cache)]) == 0
    shown = capsys.readouterr().out
    assert "4 parts of up to 4 samples, 12 samples" in shown
    assert "1 quarantined; 1 image_empty" in shown
    assert "s0006 (image_empty)" in shown
    assert "'retention': 0.3" in shown


def test_a_sample_is_described_with_its_kept_tokens_and_place(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = PrunedCache(str(cache)).row("s0050")
    assert main(["inspect", str(cache), "s0050"]) == 0
    shown = capsys.readouterr().out
    for kept in row["kept"]:
        assert f"{len(kept)}: {' '.join(map(str, kept))}" in shown
    assert f"{row['kv_object']} bytes {row['kv_offset']}..{row['kv_offset'] + row['kv_length'] - 1}" in shown
    assert "128 x 128 pixels" in shown
    assert "(read and equal)" in shown


@pytest.mark.parametrize("key", ["s0050", "s0007"])
def test_the_picture_shows_as_many_kept_tokens_as_are_stored(
    cache: Path, tiny_model: Path, tmp_path: Path, key: str
) -> None:
    """Of a tar and of the second shard of a JSONL; every kept token is framed in one colour, at each prune point."""
    out = tmp_path / "kept.png"
    assert main(["inspect", str(cache), key, "--png", str(out), "--model", str(tiny_model)]) == 0
    pixels = np.asarray(Image.open(out).convert("RGB"))
    framed = (pixels == np.array(KEPT)).all(-1).sum()
    kept = sum(len(point) for point in PrunedCache(str(cache)).row(key)["kept"])
    assert 0 < framed <= kept * 4 * 13  # a frame is 52 pixels; tile edges may cross it
    assert framed >= kept * 4 * 13 // 2


def test_a_picture_over_another_models_grid_is_refused(
    cache: Path, model_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kept.png"
    assert main(["inspect", str(cache), "s0050", "--png", str(out), "--model", str(model_folders["qwen2"])]) == 3
    assert "model.config" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["no/such/folder/kept.png", "kept.unknown"])
def test_a_picture_that_cannot_be_written_is_said(
    cache: Path, tiny_model: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--png", str(tmp_path / name), "--model", str(tiny_model)]
    assert main(["inspect", str(cache), "s0050", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trio-ray: --png: ")
    assert len(error.splitlines()) == 1


def test_what_cannot_be_drawn_or_found_is_said(
    made: Path, cache: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(cache), "--png", str(tmp_path / "x.png")]) == 2
    assert "--png: needs a sample's KEY" in capsys.readouterr().err
    assert main(["inspect", str(cache), "nobody"]) == 1
    assert "'nobody'" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 2
    kept_aside = shutil.copy(made / "corpus" / "a.tar", tmp_path / "a.tar")
    try:
        write_tar(made / "corpus" / "a.tar", samples(5, first=70))
        assert main(["inspect", str(cache), "s0050", "--png", str(tmp_path / "x.png"), "--model", str(tiny_model)]) == 2
        assert "no longer holds the image" in capsys.readouterr().err
    finally:
        shutil.copy(kept_aside, made / "corpus" / "a.tar")
