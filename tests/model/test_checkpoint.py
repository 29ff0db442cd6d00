"""The check of a checkpoint before anything is loaded: a sound one passes, and each faulty one is refused in one
sentence that names the setting and the fault.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import STANDINS, change_json, read_tensors, write_weights
from trio_ray.config import ModelConfig, PromptConfig
from trio_ray.errors import ConfigError
from trio_ray.model.checkpoint import Checkpoint, check_checkpoint
from trio_ray.model.loading import load_model, pinned

Change = Callable[[Path], None]


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


def config(**settings: object) -> Change:
    return lambda folder: change_json(folder / "config.json", **settings)


def text(**settings: object) -> Change:
    return part("text_config", **settings)


def part(name: str, **settings: object) -> Change:
    def change(folder: Path) -> None:
        of_part = json.loads((folder / "config.json").read_text())[name]
        change_json(folder / "config.json", **{name: of_part | settings})

    return change


def file(name: str, content: str | bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def without(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def renamed(rename: Callable[[str], str | None]) -> Change:
    """The weights under other names; None leaves a tensor out."""

    def change(folder: Path) -> None:
        tensors = {rename(name): tensor for name, tensor in read_tensors(folder).items()}
        write_weights(folder, {name: tensor for name, tensor in tensors.items() if name is not None}, 2)

    return change


def weights(change_tensors: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = read_tensors(folder)
        change_tensors(tensors)
        write_weights(folder, tensors, 2)

    return change


def shard(folder: Path) -> Path:
    return folder / "model-00002-of-00002.safetensors"


def cut(to: float) -> Change:
    def change(folder: Path) -> None:
        data = shard(folder).read_bytes()
        shard(folder).write_bytes(data[: int(len(data) * to)])

    return change


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def template(text: str) -> Change:
    return file("chat_template.json", json.dumps({"chat_template": text}))


def image_token_elsewhere(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<image>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    without("added_tokens.json")(folder)


Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"
HEAD = "language_model.lm_head.weight"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134\n"
FAULTS: dict[str, tuple[Change, str]] = {
    "peft_prefix": (renamed(lambda name: f"base_model.model.{name}"), r"begin with 'base_model\.model\.'"),
    "module_prefix": (renamed(lambda name: f"module.{name}"), r"begin with 'module\.'"),
    "tied_in_one_place": (
        both(text(tie_word_embeddings=True), renamed(lambda name: None if name == HEAD else name)),
        "lack lm_head.weight.*tie_word_embeddings",
    ),
    "no_projector": (
        renamed(lambda name: None if "projector" in name else name),
        r"lack: model\.multi_modal_projector",
    ),
    "no_newline": (renamed(lambda name: None if name == "image_newline" else name), r"lack: model\.image_newline"),
    "one_tensor_lost": (
        renamed(lambda name: None if name == Q_PROJ else name),
        r"lack: .*layers\.0\.self_attn\.q_proj",
    ),
    "more_layers_in_config": (text(num_hidden_layers=9), r"lack: .*layers\.6.* and \d+ more"),
    "fewer_layers_in_config": (text(num_hidden_layers=4), r"no place for: .*layers\.4"),
    "other_shape": (text(intermediate_size=128), r"another shape.*gate_proj.*\[96, 64\] instead of \[128, 64\]"),
    "other_vocabulary": (text(vocab_size=4096), r"another shape.*instead of \[4096, 64\]"),
    "adapter_beside": (file("adapter_config.json", '{"peft_type": "LORA"}'), "holds an adapter.*merge"),
    "adapter_instead": (
        both(
            without("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"),
            file("adapter_config.json", "{}"),
            file("adapter_model.safetensors", b""),
        ),
        "adapter|config.json",
    ),
    "lora_in_the_weights": (
        weights(
            lambda tensors: tensors.update(
                {"language_model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 64)}
            )
        ),
        "adapter beside the weights.*lora_A",
    ),
    "extra_bias": (
        weights(lambda tensors: tensors.update({Q_PROJ.replace("weight", "bias"): torch.ones(64)})),
        r"no place for: .*q_proj\.bias",
    ),
    "awq": (config(quantization_config={"quant_method": "awq", "bits": 4}), "quantised.*'awq'"),
    "bitsandbytes": (text(quantization_config={"quant_method": "bitsandbytes"}), "quantised.*'bitsandbytes'"),
    "int8_weights": (
        weights(lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].to(torch.int8)})),
        "type I8.*quantised",
    ),
    "fp8_weights": (
        weights(lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].to(torch.float8_e4m3fn)})),
        "F8_E4M3.*quantised",
    ),
    "lfs_weights": (lambda folder: file(shard(folder).name, LFS)(folder), "Git LFS pointer.*git lfs pull"),
    "lfs_tokenizer": (file("tokenizer.json", LFS), "tokenizer.json is a Git LFS pointer"),
    "lfs_config": (file("config.json", LFS), "config.json is a Git LFS pointer"),
    "lfs_index": (file("model.safetensors.index.json", LFS), "index.json is a Git LFS pointer"),
    "cut_weights": (cut(0.5), "not a whole safetensors file.*download it again"),
    "empty_weights": (cut(0), r"\(0 bytes\) is not a whole safetensors file"),
    "lost_shard": (lambda folder: shard(folder).unlink(), "00002-of-00002.safetensors is missing"),
    "index_is_a_list": (file("model.safetensors.index.json", "[]"), "has no weight_map"),
    "index_is_no_json": (file("model.safetensors.index.json", "{"), "cannot be read as JSON"),
    "index_leaves_the_folder": (
        file("model.safetensors.index.json", '{"weight_map": {"a": "../model.safetensors"}}'),
        "not a file of the folder",
    ),
    "pytorch_weights": (
        both(
            without(
                "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"
            ),
            file("pytorch_model.bin", b"PK"),
        ),
        "only pytorch_model.bin; save the model with safetensors",
    ),
    "no_weights": (
        without("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
        "the weights are missing",
    ),
    "index_lost": (without("model.safetensors.index.json"), "only model-00001-of-00002.safetensors.*add the index"),
    "siglip_tower": (part("vision_config", model_type="siglip_vision_model"), "siglip.*not supported.*CLIP"),
    "gemma_backbone": (text(model_type="gemma2"), "'gemma2' is not supported.*llama, mistral, qwen2"),
    "unknown_backbone": (text(model_type="nobody_knows"), "'nobody_knows' is not supported"),
    "llava_one_five": (config(model_type="llava"), "'llava' model; it must be 'llava_next'"),
    "activation": (text(hidden_act="gelu"), "activation 'gelu' is not supported"),
    "strategy": (config(vision_feature_select_strategy="full"), "'full' is not supported"),
    "strategy_of_processor": (
        lambda folder: change_json(folder / "processor_config.json", vision_feature_select_strategy="full"),
        "disagree about vision_feature_select_strategy",
    ),
    "feature_layer": (config(vision_feature_layer=-9), "vision_feature_layer -9"),
    "config_is_a_list": (file("config.json", "[1, 2]"), "config.json must hold a mapping, not a list"),
    "config_is_empty": (file("config.json", ""), "cannot be read as JSON"),
    "config_is_binary": (file("config.json", b"\xff\xfe\x00"), "cannot be read as JSON"),
    "text_config_is_a_list": (config(text_config=["llama"]), "text_config must be a mapping"),
    "text_config_is_a_string": (config(text_config="llama"), "text_config must be a mapping"),
    "vision_config_is_a_number": (config(vision_config=3), "vision_config must be a mapping"),
    "string_for_a_number": (text(num_hidden_layers="six"), "config.json"),
    "number_as_a_string": (text(hidden_size="64"), "config.json"),
    "no_layers": (text(num_hidden_layers=-1), "config.json|lack|no place|model"),
    "heads_do_not_divide": (text(num_attention_heads=5), "config.json|shape"),
    "kv_heads_do_not_divide": (text(num_key_value_heads=3), "config.json|shape"),
    "zero_heads": (text(num_attention_heads=0), "config.json"),
    "null_heads": (text(num_attention_heads=None), "config.json"),
    "rope_type": (text(rope_scaling={"type": "nobody_knows", "factor": 2.0}), "config.json|rope"),
    "rope_is_a_list": (text(rope_scaling=[1]), "config.json|rope"),
    "activation_unknown": (config(projector_hidden_act="nobody_knows"), "cannot be built"),
    "image_token_unknown": (image_token_elsewhere, "does not know the image token '<image>'"),
    "image_token_other": (config(image_token_index=7), r"is \d+ to the tokenizer and 7 in config.json"),
    "image_token_string": (config(image_token_index="<image>"), "config.json"),
    "small_vocabulary": (
        both(
            text(vocab_size=64),
            weights(
                lambda tensors: tensors.update(
                    {
                        HEAD: tensors[HEAD][:64],
                        "language_model.model.embed_tokens.weight": tensors["language_model.model.embed_tokens.weight"][
                            :64
                        ],
                    }
                )
            ),
        ),
        "vocabulary has 64 entries",
    ),
    "stop_token_beyond": (
        file("generation_config.json", '{"eos_token_id": 99999}'),
        "'eos_token_id' has the number 99999",
    ),
    "stop_token_string": (file("generation_config.json", '{"eos_token_id": "</s>"}'), "eos_token_id must be"),
    "generation_config_list": (file("generation_config.json", "[]"), "generation_config.json must hold a mapping"),
    "pinpoints_differ": (config(image_grid_pinpoints=[[28, 56], [56, 28]]), "disagree about image_grid_pinpoints"),
    "pinpoints_empty": (
        both(
            config(image_grid_pinpoints=[]),
            lambda f: change_json(f / "preprocessor_config.json", image_grid_pinpoints=[]),
        ),
        "image_grid_pinpoints|cannot be run",
    ),
    "pinpoints_words": (
        lambda f: change_json(f / "preprocessor_config.json", image_grid_pinpoints=["28x56"]),
        "settings cannot be read|loaded",
    ),
    "tile_differs": (
        lambda folder: change_json(
            folder / "preprocessor_config.json", size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14}
        ),
        "disagree about image_size",
    ),
    "patch_differs": (lambda f: change_json(f / "processor_config.json", patch_size=14), "disagree about patch_size"),
    "no_resize": (lambda f: change_json(f / "preprocessor_config.json", do_resize=False), "not supported"),
    "mean_is_a_word": (lambda f: change_json(f / "preprocessor_config.json", image_mean="grey"), "mean|cannot"),
    "two_means": (lambda f: change_json(f / "preprocessor_config.json", image_mean=[0.5, 0.5]), "image_mean"),
    "std_zero": (lambda f: change_json(f / "preprocessor_config.json", image_std=[0, 1, 1]), "image_std"),
    "processor_is_a_list": (file("preprocessor_config.json", "[]"), "must hold a mapping"),
    "no_image_processor": (without("preprocessor_config.json"), "image processor|preprocessor_config"),
    "other_image_processor": (
        lambda f: change_json(f / "preprocessor_config.json", image_processor_type="CLIPImageProcessor"),
        "CLIPImageProcessor",
    ),
    "tokenizer_is_no_json": (file("tokenizer.json", "{"), "tokenizer.json cannot be read as JSON"),
    "tokenizer_is_another_json": (file("tokenizer.json", "{}"), "tokenizer"),
    "no_tokenizer": (without("tokenizer.json", "added_tokens.json"), "tokenizer"),
    "tokenizer_model_alone": (
        both(without("tokenizer.json", "added_tokens.json"), file("tokenizer.model", b"\x0a\x0e")),
        "tokenizer",
    ),
    "processor_config_is_a_list": (file("processor_config.json", "[]"), "must hold a mapping"),
}


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
    checkpoint.check_memory(torch.float32, torch.device("cpu"))
    weights = checkpoint.parameters * 4
    monkeypatch.setattr("trio_ray.model.checkpoint.host_memory", lambda: weights + 1000)
    with pytest.raises(ConfigError, match=r"does not fit: .* billion weights take .* GB in float32.*this machine has"):
        checkpoint.check_memory(torch.float32, torch.device("cpu"))
    checkpoint.check_memory(torch.bfloat16, torch.device("cpu"))


def test_a_72b_model_is_measured_without_its_weights(standins: dict[str, Path], tmp_path: Path) -> None:
    """The real shapes of llava-next-72b-hf, with a seed in place of weights: 146 GB in bfloat16."""
    folder = Path(shutil.copytree(standins["72b"], tmp_path / "model", ignore=shutil.ignore_patterns("model*")))
    text(
        hidden_size=8192, intermediate_size=24576, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=64, vocab_size=152064,
    )(folder)  # fmt: skip
    (folder / "random_weights.json").write_text('{"seed": 0}')
    assert check(folder).parameters / 1e9 == pytest.approx(72, abs=1.5)


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
