"""`trio-ray generate` answers from stored prefixes alone."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cli import main
from trio_ray.model.replica import Replica
from trio_ray.store.dataset import load_dataset
from trio_ray.store.local import LocalStore
from trio_ray.store.record import dump_record


def test_answers_are_those_of_the_stored_prefixes(
    cache: Path, tiny_model: Path, llama: Replica, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tiny_model), "--limit", "100", "--batch", "5", "--max-new-tokens", "6", "--json"]
    assert main(["generate", str(cache), *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stored = list(PrunedCache(str(cache)).stream())
    assert [line["key"] for line in lines] == [item.row["key"] for item in stored]
    assert [line["answer"] for line in lines] == [llama.generate([item.prefix], 6)[0] for item in stored]
    assert [line["truth"] for line in lines] == [item.row["answer"] for item in stored]
    assert any(line["answer"] for line in lines)


def test_keys_are_answered_in_their_order_beside_the_true_answers(
    cache: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = PrunedCache(str(cache)).row("vqa:8")["shard"]
    keys = [f"{shard}:s0007", "s0050", f"{shard}:vqa:8", "vqa:8", "s0001"]
    assert main(["generate", str(cache), *keys, "--model", str(tiny_model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[:-1:2]] == ["s0007", "s0050", "vqa:8", "vqa:8", "s0001"]
    assert lines[5] == lines[7]
    assert lines[-2].endswith("(true: two)")
    shown = [line.partition("   (true: ") for line in lines[1:-1:2]]
    known = [(given.partition("-> ")[2], truth[:-1]) for given, mark, truth in shown if mark]
    assert known
    assert lines[-1] == f"{sum(a == b for a, b in known)} of {len(known)} answers equal the true ones"


def test_a_key_of_several_shards_and_another_model_are_refused(
    cache: Path, tiny_model: Path, model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(cache), "s0003", "--model", str(tiny_model)]) == 1
    assert "several shards have it" in capsys.readouterr().err
    assert main(["generate", str(cache), "--model", str(model_folders["qwen2"])]) == 3
    assert "model.config" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--batch", "--limit", "--max-new-tokens"])
def test_a_count_below_one_is_refused(option: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(cache), option, "0"]) == 2
    assert capsys.readouterr().err == f"trio-ray: {option}: 0 must be at least 1 (see trio-ray generate --help)\n"


def test_the_model_is_the_one_that_the_cache_names(
    cache: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(cache), "s0050", "--json"]) == 0
    unnamed = capsys.readouterr().out
    assert main(["generate", str(cache), "s0050", "--model", str(tiny_model), "--json"]) == 0
    assert capsys.readouterr().out == unnamed
    manifest = load_dataset(LocalStore(cache))
    for model, words in (
        ("/gone/model", f"{cache} was made with /gone/model: there is no folder '/gone/model'; give the model"),
        ("", "does not name the model that made it; give one"),
    ):
        (cache / "dataset.json").write_bytes(dump_record(asdict(replace(manifest, model=model))))
        assert main(["generate", str(cache), "s0050"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("trio-ray: model.name: ")
        assert words in error


def test_what_follows_the_last_at_sign_is_a_commit_only_if_it_looks_like_one(cache: Path) -> None:
    manifest = load_dataset(LocalStore(cache))
    for model, name, commit in (
        ("owner/model@" + "0a" * 20, "owner/model", "0a" * 20),
        ("/models/me@home", "/models/me@home", None),
        ("bundled", "bundled", None),
    ):
        named = replace(manifest, model=model)
        assert (named.model_name, named.model_commit) == (name, commit)
