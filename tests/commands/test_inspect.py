"""`trio-ray inspect` says what is stored and draws which image tokens were kept."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tokenizers import Tokenizer

from tests.corpora import samples, write_tar
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cli import main
from trio_ray.model.patch_grid import PatchGrid
from trio_ray.report.overlay import KEPT, patch_pixels


def test_a_cache_is_summed_up(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = PrunedCache(str(cache)).table
    for file in cache.glob("data/*/*.parquet"):
        if "quarantine" not in file.name:
            file.unlink()  # nothing of it is read
    assert main(["inspect", str(cache)]) == 0
    shown = capsys.readouterr().out
    assert "samples        12 stored, 1 in quarantine" in shown
    assert "parts          4 of 3 shards, 3 of them complete" in shown
    assert "quarantine     1: 1 image_empty" in shown
    assert "s0006 (image_empty)" in shown
    assert f"{sum(table.column('kv_length').to_pylist()):,} bytes of KV" in shown
    tokens = sum(table.column("image_tokens").to_pylist())
    held = sum(row["retention"] * row["image_tokens"] for row in table.to_pylist())
    assert f"{tokens / 12:.1f} a sample, {held / tokens:.1%} of them held" in shown
    settings = yaml.safe_load(shown.partition("settings\n")[2])
    assert settings["method"]["retention"] == 0.3
    assert settings["source"]["rows_per_shard"] == 4


def test_a_cache_is_summed_up_without_torch(cache: Path) -> None:
    """It takes seconds to import, and nothing here needs it."""
    program = (
        f"import sys; from trio_ray.cli import main; main(['inspect', {str(cache)!r}]); print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "False"


def test_the_whole_quarantine_is_listed_when_asked_for(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(cache), "--quarantine"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert ": s0006 (image_empty): " in line
    assert main(["inspect", str(cache), "s0050", "--quarantine"]) == 2


def test_a_sample_is_described_with_its_kept_tokens_and_place(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = PrunedCache(str(cache)).row("s0050")
    assert main(["inspect", str(cache), "s0050"]) == 0
    shown = capsys.readouterr().out
    for kept in row["kept"]:
        assert f"{len(kept)}: {' '.join(map(str, kept))}" in shown
    assert f"{row['kv_object']} bytes {row['kv_offset']}..{row['kv_offset'] + row['kv_length'] - 1}" in shown
    assert "128 x 128 pixels" in shown
    assert "(read and equal)" in shown


def test_first_tokens_are_text(cache: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = PrunedCache(str(cache)).row("s0050")
    word = Tokenizer.from_file(str(tiny_model / "tokenizer.json")).id_to_token(row["top_ids"][0])
    assert main(["inspect", str(cache), "s0050", "--model", str(tiny_model)]) == 0
    assert (
        f"first token    {word.replace('▁', ' ')!r} {math.exp(row['top_logprobs'][0]):.1%}, " in capsys.readouterr().out
    )


@pytest.mark.parametrize("key", ["s0050", "s0007"])
def test_the_picture_shows_as_many_kept_tokens_as_are_stored(cache: Path, tmp_path: Path, key: str) -> None:
    """Of a tar and of the second shard of a JSONL; every kept token is framed in one colour, at each prune point."""
    out = tmp_path / "kept.png"
    assert main(["inspect", str(cache), key, "--png", str(out)]) == 0
    row = PrunedCache(str(cache)).row(key)
    patch = patch_pixels(PatchGrid.of_image(row["images"][0]))
    pixels = np.asarray(Image.open(out).convert("RGB"))
    framed = (pixels == np.array(KEPT)).all(-1).sum()
    kept = sum(len(point) for point in row["kept"])
    assert kept * 2 * patch < framed < kept * (4 * patch + patch * patch // 3)  # newline tokens are marks of that size


@pytest.mark.parametrize("name", ["no/such/folder/kept.png", "kept.unknown"])
def test_a_picture_that_cannot_be_written_is_said(
    cache: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(cache), "s0050", "--png", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trio-ray: --png: ")
    assert len(error.splitlines()) == 1


def test_what_cannot_be_drawn_or_found_is_said(
    made: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(cache), "--png", str(tmp_path / "x.png")]) == 2
    assert "--png: needs a sample's KEY" in capsys.readouterr().err
    assert main(["inspect", str(cache), "nobody"]) == 1
    assert "'nobody'" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 2
    kept_aside = shutil.copy(made / "corpus" / "a.tar", tmp_path / "a.tar")
    try:
        write_tar(made / "corpus" / "a.tar", samples(5, first=70))
        assert main(["inspect", str(cache), "s0050", "--png", str(tmp_path / "x.png")]) == 2
        assert "no longer holds the image" in capsys.readouterr().err
    finally:
        shutil.copy(kept_aside, made / "corpus" / "a.tar")


def test_an_input_with_fewer_rows_than_it_had_is_a_sentence(
    made: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run of a file's rows, which the sample came from, is not there any more."""
    records = made / "corpus" / "b.jsonl"
    before = records.read_text()
    try:
        records.write_text("".join(before.splitlines(keepends=True)[:2]))
        assert main(["inspect", str(cache), "s0007", "--png", str(tmp_path / "x.png")]) == 2
        error = capsys.readouterr().err
        assert "'s0007'" in error
        assert "b.jsonl has other rows than the file that the cache was made from" in error
        assert len(error.splitlines()) == 1
    finally:
        records.write_text(before)
