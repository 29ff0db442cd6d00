"""Faults of real checkpoints, each a change of a sound stand-in, with the words that the refusal must hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from tests.checkpoints import change_json, read_tensors, write_weights

Change = Callable[[Path], None]


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
    "pinpoints_of_config_are_numbers": (config(image_grid_pinpoints=[28, 56]), "holds settings that|config.json"),
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
