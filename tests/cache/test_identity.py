"""The identity holds what decides about stored bytes, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from trio_ray.cache.identity import build_identity, method_of
from trio_ray.config import DEFAULT_INSTRUCTION, JobConfig, load_config
from trio_ray.kv.codecs.registry import full_spec
from trio_ray.store.dataset import first_difference, hash_identity


def identity_of(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> dict[str, Any]:
    config: JobConfig = load_config(values={name.replace("__", "."): value for name, value in settings.items()})
    codec = full_spec("raw") if config.cache.level == "kv" else None
    return build_identity(config, folder, dtype, config.method.build(8), codec)


@pytest.fixture
def folder(model_folders: dict[str, Path]) -> Path:
    return model_folders["llama"]


def test_it_is_plain_json(folder: Path) -> None:
    identity = identity_of(folder)
    assert hash_identity(json.loads(json.dumps(identity))) == hash_identity(identity)


def test_the_same_model_elsewhere_and_another_spread_of_work_change_nothing(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    spread = {
        "model__name": str(moved),
        "model__attention": "sdpa",
        "pipeline__token_budget": 77,
        "cache__part_samples": 5,
        "s3__region": "x",
        "source__image_root": "/data",
        "source__allow_any_path": True,
    }
    assert identity_of(moved, **spread) == identity_of(folder)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"method__retention": 0.6}, "method.retention"),
        ({"method__prune_points": [2, 3, 4]}, "method.prune_points"),
        ({"method__settings": {"supervised_rows": [-1]}}, "method.settings.supervised_rows"),
        ({"prompt__template": "{prompt}"}, "prompt.template"),
        ({"cache__top_k": 9}, "cache.top_k"),
        ({"cache__level": "embeds"}, "cache.codec"),
        ({"cache__level": "indices"}, "cache.codec"),
        ({"cache__scope": "image"}, "cache.instruction"),
        ({"cache__targets": "top_k"}, "cache.targets"),
        ({"source__rows_per_shard": 7}, "source.rows_per_shard"),
    ],
)
def test_what_changes_the_stored_bytes_changes_the_identity(folder: Path, settings: dict[str, Any], field: str) -> None:
    base = {"method__retention": 0.5}
    difference = first_difference(identity_of(folder, **base), identity_of(folder, **{**base, **settings}))
    assert difference is not None
    assert difference[0] == field


def test_level_scope_and_instruction_are_part_of_it_by_name(folder: Path) -> None:
    cache = identity_of(folder)["cache"]
    assert (cache["level"], cache["scope"], cache["instruction"], cache["targets"]) == ("kv", "prompt", None, "none")
    image = {"cache__scope": "image", "cache__level": "embeds"}
    generic, other = identity_of(folder, **image), identity_of(folder, **image, cache__instruction="what is it ?")
    assert (generic["cache"]["level"], generic["cache"]["codec"]) == ("embeds", None)
    assert first_difference(generic, other) == ("cache.instruction", DEFAULT_INSTRUCTION, "what is it ?")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("model.safetensors", "model.weights"),
        ("config.json", "model.config"),
        ("tokenizer.json", "model.tokenizer"),
        ("chat_template.jinja", "model.processor"),
    ],
)
def test_one_changed_byte_of_a_model_file_changes_the_identity(
    folder: Path, tmp_path: Path, name: str, field: str
) -> None:
    changed = shutil.copytree(folder, tmp_path / "changed")
    data = (changed / name).read_bytes()
    if name == "config.json":
        other = data.replace(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05')
    else:
        other = data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
    assert other != data
    (changed / name).write_bytes(other)
    difference = first_difference(identity_of(folder), identity_of(changed))
    assert difference is not None
    assert difference[0] == field


def test_the_arithmetic_is_part_of_it(folder: Path) -> None:
    difference = first_difference(identity_of(folder), identity_of(folder, dtype=torch.bfloat16))
    assert difference == ("model.dtype", "float32", "bfloat16")


def test_the_method_is_in_it_as_itself(folder: Path) -> None:
    settings = {"method__selector": "trio-plus", "method__settings": {"threshold": 0.7}, "method__tokens": 20.5}
    identity = json.loads(json.dumps(identity_of(folder, **settings)))
    method = load_config(values={name.replace("__", "."): value for name, value in settings.items()}).method.build(8)
    assert identity["method"] == method.to_dict()
    assert method_of(identity) == method
