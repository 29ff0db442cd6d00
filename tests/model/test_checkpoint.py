"""The check of a checkpoint before anything is loaded: a sound one passes, and each faulty one is refused in one
sentence that names the setting and the fault.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.checkpoints import STANDINS, read_tensors, write_weights
from tests.faulty_checkpoints import (
    FAULTS,
    HEAD,
    Q_PROJ,
    Change,
    config,
    renamed,
    template,
    text,
    without,
)
from trio_ray.config import ModelConfig, PromptConfig
from trio_ray.errors import ConfigError
from trio_ray.model.checkpoint import Checkpoint, check_checkpoint
from trio_ray.model.device_memory import CUDA_CONTEXT_BYTES, DeviceMemory, device_memory
from trio_ray.model.loading import load_model, pinned


def check(folder: Path, template: str | None = None) -> Checkpoint:
    return check_checkpoint(ModelConfig(name=str(folder)), PromptConfig(template=template))


@pytest.fixture
def folder(standins: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a stand-in that the test may break."""
    return Path(shutil.copytree(standins["vicuna"], tmp_path / "model"))


@pytest.mark.parametrize("name", STANDINS)
def test_a_sound_checkpoint_passes_and_answers_can_follow_its_prompts(name: str, standins: dict[str, Path]) -> None:
    checkpoint = check(standins[name])
    checkpoint.check_targets()
    stored = read_tensors(standins[name])
    assert checkpoint.parameters == sum(tensor.numel() for tensor in stored.values())
    assert checkpoint.context == 2048
    assert len(checkpoint.stop_tokens) == (2 if name == "llama3" else 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_checkpoint_is_refused_in_one_sentence(fault: str, folder: Path) -> None:
    change, words = FAULTS[fault]
    change(folder)
    with pytest.raises(ConfigError, match=words) as caught:
        check(folder)
    assert caught.value.field == "model.name"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


NO_IMAGE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
TEXT_ONLY = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
NO_QUESTION = "{% for message in messages %}<image>{% endfor %}"
TWICE = "<image>{% for message in messages %}<image>{{ message['content'][1]['text'] }}{% endfor %}"
TEMPLATES: dict[str, tuple[Change, str]] = {
    "none": (without("chat_template.json"), "has no chat template; set prompt.template"),
    "empty": (template(""), "has no chat template; set prompt.template"),
    "places_no_image": (template(NO_IMAGE), "places 0 images.*set prompt.template"),
    "text_only": (template(TEXT_ONLY), "cannot write these turns.*set prompt.template"),
    "drops_the_question": (template(NO_QUESTION), "does not write the question"),
    "places_it_twice": (template(TWICE), "places 2 images"),
    "syntax": (template("{% for %}"), "cannot write these turns.*set prompt.template"),
    "index": (template("{{ messages[7]['role'] }}"), "cannot write these turns|places 0 images"),
    "raises": (template("{{ raise_exception('not today') }}"), "not today.*set prompt.template"),
}


@pytest.mark.parametrize("fault", TEMPLATES)
def test_a_template_that_cannot_ask_about_an_image_is_found_and_prompt_template_mends_it(
    fault: str, folder: Path
) -> None:
    change, words = TEMPLATES[fault]
    change(folder)
    with pytest.raises(ConfigError, match=words) as caught:
        check(folder)
    assert caught.value.field == "prompt.template"
    assert "\n" not in str(caught.value)
    for mended in ("USER: {prompt} ASSISTANT:", "USER: <image>\n{prompt} ASSISTANT:"):
        check(folder, mended).check_targets()


def test_a_template_of_the_settings_that_places_two_images_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="places 2 images"):
        check(folder, "<image> <image> {prompt}")


def test_targets_without_a_stop_token_are_refused(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no eos_token_id") as caught:
        check(folder).check_targets()
    assert caught.value.field == "cache.targets"


def test_a_model_that_does_not_fit_is_refused_with_the_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = check(folder)
    cpu = torch.device("cpu")
    checkpoint.check_memory(torch.float32, device_memory(cpu))
    weights = checkpoint.parameters * 4
    monkeypatch.setattr("trio_ray.model.device_memory.host_memory", lambda: weights + 1000)
    with pytest.raises(ConfigError, match=r"does not fit: .* billion weights take .* GB in float32.*this machine has"):
        checkpoint.check_memory(torch.float32, device_memory(cpu))
    checkpoint.check_memory(torch.bfloat16, device_memory(cpu))


def test_a_gpu_is_measured_with_its_context_and_the_replicas_share_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = check(folder)
    needed = checkpoint.needed_bytes(torch.bfloat16) + CUDA_CONTEXT_BYTES
    for size in (needed, needed - 1):
        properties = SimpleNamespace(total_memory=size, name="NVIDIA Tiny")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=properties: found)
        memory = device_memory(torch.device("cuda"))
        if size == needed:
            checkpoint.check_memory(torch.bfloat16, memory)
        else:
            with pytest.raises(ConfigError, match=r"in bfloat16 .* and NVIDIA Tiny has 1\.1 GB"):
                checkpoint.check_memory(torch.bfloat16, memory)
    with pytest.raises(ConfigError, match=r"a share of 0\.5 of NVIDIA Tiny has 0\.5 GB"):
        checkpoint.check_memory(torch.bfloat16, memory.shared_by(0.5))


def test_a_72b_model_is_measured_without_its_weights(standins: dict[str, Path], tmp_path: Path) -> None:
    """The real shapes of llava-next-72b-hf, with a seed in place of weights: 146 GB in bfloat16."""
    folder = Path(shutil.copytree(standins["72b"], tmp_path / "model", ignore=shutil.ignore_patterns("model*")))
    text(
        hidden_size=8192, intermediate_size=24576, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=64, vocab_size=152064,
    )(folder)  # fmt: skip
    (folder / "random_weights.json").write_text('{"seed": 0}')
    checkpoint = check(folder)
    assert checkpoint.parameters / 1e9 == pytest.approx(72, abs=1.5)
    with pytest.raises(ConfigError, match=r"weights take 14\d\.\d GB in bfloat16 .*, and NVIDIA H100 has 85\.0 GB"):
        checkpoint.check_memory(torch.bfloat16, DeviceMemory("NVIDIA H100", int(85e9), CUDA_CONTEXT_BYTES))


def test_what_loading_itself_misses_is_an_error(folder: Path) -> None:
    renamed(lambda name: None if name in (HEAD, Q_PROJ) else name)(folder)
    with pytest.raises(ConfigError, match=r"lack: lm_head\.weight, model\.language_model\.layers\.0"):
        load_model(folder, torch.float32, torch.device("cpu"))


def test_a_tied_head_and_buffers_of_old_checkpoints_are_no_fault(folder: Path) -> None:
    config(tie_word_embeddings=True)(folder)
    tensors: dict[str, Any] = {name: tensor for name, tensor in read_tensors(folder).items() if name != HEAD}
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    write_weights(folder, tensors, 1)
    check(folder)
    model = load_model(folder, torch.float32, torch.device("cpu"))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("/no/such/folder", None, "there is no folder"),
        ("./no-such-folder", None, "there is no folder"),
        ("a/b/c", None, "there is no folder"),
        ("", None, "is empty"),
        ("x" * 5000, None, "is no path"),
        ("not a name!", None, "neither a folder nor a hub name"),
        ("owner/model", None, "HF_HUB_OFFLINE"),
        ("FOLDER", "main", "only hub models have revisions"),
        ("FOLDER/config.json", None, "is a file; give the folder"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name: str, revision: str | None, words: str, folder: Path) -> None:
    wanted = ModelConfig(name=name.replace("FOLDER", str(folder)), revision=revision)
    with pytest.raises(ConfigError, match=words):
        check_checkpoint(wanted)


def test_a_folder_needs_no_commit(folder: Path) -> None:
    wanted = ModelConfig(name=str(folder))
    assert pinned(wanted) == wanted
