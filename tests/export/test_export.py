"""`trio-ray export`: folders from which other engines answer what our own engine answers."""

from __future__ import annotations

import base64
import io
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.corpora import noise, sample, samples, write_tar
from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cache.stored_prefixes import prefixes_of
from trio_ray.cli import main
from trio_ray.config import S3Config
from trio_ray.model.replica import Replica

UNIFORM = {"method__layout": "uniform"}
SETTINGS: dict[str, dict[str, Any]] = {
    "kv": UNIFORM,
    "kv-image": {**UNIFORM, "cache__scope": "image"},
    "embeds": {**UNIFORM, "cache__level": "embeds"},
    "embeds-image": {**UNIFORM, "cache__level": "embeds", "cache__scope": "image"},
    "ragged": {"method__positions": "compact"},
    "original": {"method__positions": "original", "cache__level": "embeds"},
    "indices": {"cache__level": "indices"},
}


@pytest.fixture(scope="session")
def tiny_model(model_folders: dict[str, Path]) -> Path:
    """The folder of a random model with grouped heads."""
    return model_folders["mistral"]


@pytest.fixture(scope="module")
def caches(tiny_model: Path, replicas: dict[str, Replica], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    corpus = write_tar(folder / "a.tar", [*samples(4), sample(4, png=noise(4, (210, 90)))])
    for name, settings in SETTINGS.items():
        run_here(job_config(tiny_model, corpus, folder / name, **settings), replicas["mistral"])
    return folder


def export(cache: Path, out: Path, model: Path, *options: str) -> list[dict[str, Any]]:
    """The lines of an export."""
    assert main(["export", str(cache), "--out", str(out), "--model", str(model), *options]) == 0
    return [json.loads(line) for line in (out / "prefixes.jsonl").read_text(encoding="utf-8").splitlines()]


def our_answers(cache: PrunedCache, replica: Replica) -> dict[str, str]:
    """Our own engine's, by key."""
    rows = cache.table.to_pylist()
    prefixes = prefixes_of(cache, replica, rows, S3Config())
    if cache.scope == "prompt":
        answers = replica.generate(prefixes, 32)
    else:
        answers = replica.ask(prefixes, [row["prompt"] for row in rows], [row["turns"][0]["text"] for row in rows], 32)
    return dict(zip([row["key"] for row in rows], answers, strict=True))


@pytest.mark.parametrize("name", ["kv", "kv-image", "embeds", "embeds-image"])
def test_transformers_answers_from_the_folder_as_we_do(
    caches: Path, tiny_model: Path, replicas: dict[str, Replica], tmp_path: Path, capsys: Any, name: str
) -> None:
    export(caches / name, tmp_path, tiny_model, "--to", "transformers")
    capsys.readouterr()
    runpy.run_path(str(tmp_path / "run_transformers.py"), run_name="__main__")
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    ours = our_answers(PrunedCache(str(caches / name)), replicas["mistral"])
    assert len(set(ours.values())) > 1
    assert {line["key"]: line["answer"] for line in found} == ours


def test_keys_start_at_row_0_and_attention_is_unchanged(
    caches: Path, tiny_model: Path, replicas: dict[str, Replica], tmp_path: Path
) -> None:
    """They are the keys that a prefill of the same rows at positions 0, 1, ... has."""
    lines = export(caches / "kv", tmp_path, tiny_model, "--to", "vllm")
    tensors = load_file(tmp_path / "prefixes-00000.safetensors")
    embeds = PrunedCache(str(caches / "embeds"))
    replica = replicas["mistral"]
    for line in lines:
        (prefix,) = replica.prefill_embeds([embeds.embeds(line["key"])])
        assert prefix.segments[0].position[0] == 0
        keys, values = (tensors[f"{line['number']}.{name}"] for name in ("keys", "values"))
        assert torch.allclose(keys, prefix.segments[0].keys, atol=2e-5)
        assert torch.allclose(values, prefix.segments[0].values, atol=2e-5)
        assert line["rows"] == keys.shape[1] == len(line["prompt_token_ids"])
        assert line["prompt_token_ids"].count(replica.image_token_id) == line["image_rows"]


@pytest.mark.parametrize(
    ("name", "url"),
    [("embeds", "/v1/completions"), ("embeds-image", "/v1/chat/completions"), ("kv-image", "/v1/completions")],
)
def test_bodies_hold_what_the_tensors_hold(caches: Path, tiny_model: Path, tmp_path: Path, name: str, url: str) -> None:
    lines = export(caches / name, tmp_path, tiny_model, "--to", "vllm", "--bodies", "--limit", "2")
    requests = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    tensors = load_file(tmp_path / "prefixes-00000.safetensors")
    assert len(lines) == len(requests) == 2
    for line, request in zip(lines, requests, strict=True):
        body = request["body"]
        assert (request["custom_id"], request["url"]) == (f"{line['shard']}:{line['key']}", url)
        if name == "kv-image":
            assert body["prompt"] == line["prompt_token_ids"]
            assert body["cache_salt"] == f"{line['shard']}:{line['key']}"
            assert body["kv_transfer_params"] == {"key": line["key"], "shard": line["shard"]}
            continue
        kind = "prompt_embeds" if name == "embeds" else "image_rows"
        coded = body[kind] if name == "embeds" else body["messages"][0]["content"][0]["image_embeds"]
        sent = torch.load(io.BytesIO(base64.b64decode(coded)), weights_only=True)
        assert torch.equal(sent, tensors[f"{line['number']}.{kind}"])


def test_keys_limit_and_shards_choose_samples(caches: Path, tiny_model: Path, tmp_path: Path) -> None:
    keys = PrunedCache(str(caches / "embeds")).keys()
    chosen = export(caches / "embeds", tmp_path / "keys", tiny_model, "--to", "vllm", "--keys", keys[3], keys[1])
    assert [line["key"] for line in chosen] == [keys[3], keys[1]]
    limited = export(
        caches / "embeds",
        tmp_path / "limit",
        tiny_model,
        "--to",
        "vllm",
        "--limit",
        "3",
        "--shards",
        chosen[0]["shard"],
    )
    assert [line["key"] for line in limited] == keys[:3]


@pytest.mark.parametrize(
    ("name", "options", "code", "said"),
    [
        ("ragged", (), 2, "method.layout: uniform"),
        ("original", (), 2, "--renumber"),
        ("indices", (), 2, "cache.level: embeds or kv"),
        ("kv", ("--shards", "absent"), 1, "nothing is committed of shard absent"),
        ("kv", ("--model", "bundled"), 3, "model."),
        ("embeds", ("--bodies", "--to", "transformers"), 2, "--bodies"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_before_anything_is_written(
    caches: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: Any,
    name: str,
    options: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(caches / name), "--to", "vllm", "--out", str(out), "--model", str(tiny_model), *options]
    assert main(arguments) == code
    assert said in capsys.readouterr().err
    assert not out.exists() or not any(out.iterdir())


def test_a_folder_that_holds_something_is_left_alone(
    caches: Path, tiny_model: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert main(["export", str(caches / "kv"), "--to", "vllm", "--out", str(tmp_path), "--model", str(tiny_model)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_original_positions_are_exported_when_that_is_accepted(caches: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert len(export(caches / "original", tmp_path, tiny_model, "--to", "vllm", "--renumber")) == 5
