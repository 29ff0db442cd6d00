"""Finding a model: every wrong one is refused by the setting's name before a weight is read;
fingerprints tell models apart.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from trio_ray.config import ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.model.loading import model_fingerprint, model_folder, read_model_config, resolve_dtype


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a model that the test may break."""
    return Path(shutil.copytree(model_folders["llama"], tmp_path / "model"))


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refused(folder: Path, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_model_config(model_folder(ModelConfig(name=str(folder))))
    assert caught.value.field == "model.name"


def test_a_good_folder_is_read(folder: Path) -> None:
    assert model_folder(ModelConfig(name=str(folder))) == folder
    assert read_model_config(folder).model_type == "llava_next"


def test_a_name_that_is_no_folder_and_no_hub_name_is_refused() -> None:
    refused(Path("/nowhere/at/all"), "nowhere")


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "no config.json")


def test_an_unreadable_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    refused(folder, "cannot be read")


def test_another_architecture_is_refused(folder: Path) -> None:
    change(folder / "config.json", model_type="llava")
    refused(folder, "'llava'")


def test_another_text_backbone_is_refused(folder: Path) -> None:
    change(folder / "config.json", text_config={"model_type": "gemma"})
    refused(folder, "'gemma'")


def test_a_folder_without_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "safetensors")


def test_a_model_that_moved_keeps_its_fingerprint(model_folders: dict[str, Path], folder: Path) -> None:
    assert model_fingerprint(folder) == model_fingerprint(model_folders["llama"])


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("model.safetensors", "weights"),
        ("config.json", "config"),
        ("processor_config.json", "processor"),
        ("chat_template.jinja", "processor"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_one_changed_byte_changes_that_field_of_the_fingerprint_alone(folder: Path, file: str, field: str) -> None:
    before = model_fingerprint(folder)
    data = bytearray((folder / file).read_bytes())
    data[-2] ^= 1
    (folder / file).write_bytes(bytes(data))
    after = model_fingerprint(folder)
    assert {name for name in before if before[name] != after[name]} == {field}


def test_auto_is_bfloat16_on_a_gpu_and_float32_on_a_cpu() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    assert resolve_dtype("float16", torch.device("cpu")) == torch.float16
