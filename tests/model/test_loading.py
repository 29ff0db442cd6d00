"""Finding a model: every wrong one is refused by the setting's name before a weight is read;
fingerprints tell models apart.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlavaNextForConditionalGeneration

from tests.checkpoints import read_tensors, write_weights
from trio_ray.config import ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.model.checkpoint import check_checkpoint
from trio_ray.model.loading import model_fingerprint, model_folder, read_model_config, resolve_dtype


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a model that the test may break."""
    return Path(shutil.copytree(model_folders["llama"], tmp_path / "model"))


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refused(folder: Path, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_checkpoint(ModelConfig(name=str(folder)))
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
    refused(folder, "cannot be read as JSON")


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
    ("file", "old", "new", "field"),
    [
        ("model.safetensors", None, None, "weights"),
        ("config.json", b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05', "config"),
        ("processor_config.json", b'"resample": 3', b'"resample": 2', "processor"),
        ("chat_template.jinja", b"USER", b"user", "processor"),
        ("tokenizer.json", b'"briefly"', b'"shortly"', "tokenizer"),
    ],
)
def test_a_change_of_a_file_changes_its_field_of_the_fingerprint_alone(
    folder: Path, file: str, old: bytes | None, new: bytes | None, field: str
) -> None:
    before = model_fingerprint(folder)
    data = (folder / file).read_bytes()
    if old is None or new is None:
        changed = data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
    else:
        changed = data.replace(old, new)
    assert changed != data
    (folder / file).write_bytes(changed)
    after = model_fingerprint(folder)
    assert {name for name in before if before[name] != after[name]} == {field}


@pytest.mark.parametrize("how", ["in_other_shards", "in_one_file", "saved_by_transformers"])
def test_the_same_weights_in_other_files_are_the_same_model(
    how: str, standins: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(standins["vicuna"], tmp_path / "model"))
    before = model_fingerprint(folder)
    if how == "saved_by_transformers":
        model = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype="auto")
        for path in folder.glob("model*"):
            path.unlink()
        model.save_pretrained(folder, max_shard_size="200KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    else:
        write_weights(folder, read_tensors(folder), 5 if how == "in_other_shards" else 1)
    assert model_fingerprint(folder) == before


def test_the_vocabulary_counts_only_where_it_is_read(standins: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(standins["72b"], tmp_path / "model"))
    with_tokenizer = model_fingerprint(folder)["tokenizer"]
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert model_fingerprint(folder)["tokenizer"] == with_tokenizer
    (folder / "tokenizer.json").unlink()
    without = model_fingerprint(folder)["tokenizer"]
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    assert model_fingerprint(folder)["tokenizer"] != without


def test_auto_is_bfloat16_on_a_gpu_and_float32_on_a_cpu() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    assert resolve_dtype("float16", torch.device("cpu")) == torch.float16
