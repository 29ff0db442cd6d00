"""Stand-ins for the llava-hf checkpoints, tiny and with random weights: files, tensor names, sharding, kinds of
tokenizers and chat templates as on the hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from tests.tiny_models import PATCH, PINPOINTS, TILE, spread_weights

IMAGE_TOKEN = "<image>"
LEARNT_TOKENS = 300
TEXT = [
    "What is in this picture? A red circle and two blue squares.", "How many are there? There are three of them.",
    "Describe the image in detail. The picture shows a green square on the left.", "Yes, no, one, two, three, four.",
    "Answer the questions. Is there a circle above the square? Answer the question briefly.",
]  # fmt: skip

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What tokenizers of Llama 3's and Qwen 2's kind cut a text into first: newlines in a row are one piece, which a
tokenizer of GPT-2's kind parts before a word.
"""

VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}"
    "{% else %}{{ raise_exception('only user and assistant turns are written') }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nAnswer the questions.<|im_end|>' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% if messages[0]['role'] != 'system' %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nAnswer the question.<|eot_id|>' }}{% endif %}"
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n' }}{% endif %}"
)
"""Its generation prompt ends with one newline and its turns begin with two, which are one token."""


@dataclass(frozen=True)
class Standin:
    """One of the hub's checkpoints.

    `byte_level` tells the kind of its tokenizer. `special` tokens come first, `added` ones behind those learnt, as the
    image token does.
    """

    hub_name: str
    text: str
    template: str
    byte_level: bool
    heads: tuple[int, int]
    bos: str | None
    eos: str
    special: tuple[str, ...]
    added: tuple[str, ...] = ()
    generation: Mapping[str, object] = field(default_factory=dict)


SENTENCE_PIECES = ("<unk>", "<s>", "</s>")
STANDINS = {
    "vicuna": Standin(
        "llava-hf/llava-v1.6-vicuna-7b-hf", "llama", VICUNA, False, (4, 4), "<s>", "</s>", SENTENCE_PIECES, ("<pad>",)
    ),
    "mistral": Standin(
        "llava-hf/llava-v1.6-mistral-7b-hf", "mistral", MISTRAL, False, (4, 2), "<s>", "</s>", SENTENCE_PIECES,
        ("<pad>",),
    ),
    "34b": Standin(
        "llava-hf/llava-v1.6-34b-hf", "llama", CHATML, False, (4, 2), "<s>", "<|im_end|>",
        (*SENTENCE_PIECES, "<|im_start|>", "<|im_end|>"), generation={"use_cache": False},
    ),
    "llama3": Standin(
        "llava-hf/llama3-llava-next-8b-hf", "llama", LLAMA3, True, (4, 2), "<|begin_of_text|>", "<|eot_id|>",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "72b": Standin(
        "llava-hf/llava-next-72b-hf", "qwen2", CHATML, True, (4, 4), None, "<|im_end|>",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ),
}  # fmt: skip


def write_standin(folder: Path, name: str, layers: int = 6, shards: int = 2) -> Path:
    """Write a stand-in as its folder on the hub looks."""
    standin = STANDINS[name]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(standin)
    ids = tokenizer.get_vocab()
    config = _config(standin, ids, layers)
    _write_json(folder / "config.json", config)
    _write_tokenizer(folder, standin, tokenizer)
    _write_processor(folder, standin)
    eos = [ids[standin.eos], ids["<|end_of_text|>"]] if name == "llama3" else ids[standin.eos]
    _write_json(folder / "generation_config.json", {"eos_token_id": eos, **standin.generation})
    torch.manual_seed(1)
    model = LlavaNextForConditionalGeneration(LlavaNextConfig.from_pretrained(folder))
    spread_weights(model)
    write_weights(folder, {_hub_name(key): value.half() for key, value in model.state_dict().items()}, shards)
    return folder


def write_weights(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int) -> None:
    """Write tensors as that many safetensors files with their index, or as one without."""
    names = sorted(tensors)
    for old in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        old.unlink()
    if shards == 1:
        save_file({name: tensors[name].contiguous() for name in names}, folder / "model.safetensors", {"format": "pt"})
        return
    where = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        own = names[shard::shards]
        save_file({name: tensors[name].contiguous() for name in own}, folder / file, {"format": "pt"})
        where.update(dict.fromkeys(own, file))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a stand-in by their names in its files."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def change_json(path: Path, **settings: object) -> None:
    """Set some of the settings of a JSON file."""
    _write_json(path, json.loads(path.read_text(encoding="utf-8")) | settings)


def _hub_name(name: str) -> str:
    """The name that a tensor of the model has in the hub's files."""
    for now, then in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.", ""),
    ):
        if name.startswith(now):
            return then + name.removeprefix(now)
    return name


def _config(standin: Standin, ids: Mapping[str, int], layers: int) -> dict[str, Any]:
    heads, kv_heads = standin.heads
    text = {
        "_name_or_path": "a language model", "model_type": standin.text, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": (max(ids.values()) // 64 + 1) * 64, "max_position_embeddings": 2048, "rms_norm_eps": 1e-05,
        "torch_dtype": "float16", "rope_theta": 1000000.0 if standin.text != "llama" else 10000.0,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": TILE, "patch_size": PATCH, "projection_dim": 16, "vocab_size": 32000,
    }  # fmt: skip
    return {
        "architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next", "torch_dtype": "float16",
        "ignore_index": -100, "image_grid_pinpoints": PINPOINTS, "image_token_index": ids[IMAGE_TOKEN],
        "projector_hidden_act": "gelu", "tie_word_embeddings": False, "use_image_newline_parameter": True,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "text_config": text,
        "vision_config": vision, "transformers_version": "4.39.0.dev0",
    }  # fmt: skip


def _tokenizer(standin: Standin) -> Tokenizer:
    """A byte-pair encoding learnt from a few sentences, of SentencePiece's kind or of GPT's."""
    special = list(standin.special)
    tokenizer = Tokenizer(models.BPE(unk_token=None if standin.byte_level else "<unk>", byte_fallback=False))
    if standin.byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        alphabet = [chr(code) for code in range(33, 127)] + ["\n", "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNT_TOKENS + len(special) + len(alphabet), special_tokens=special, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*TEXT, "\n\n"] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (*standin.added, IMAGE_TOKEN)]
    )
    if standin.bos is not None:
        start = (standin.bos, tokenizer.token_to_id(standin.bos))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{standin.bos} $A", special_tokens=[start])
    return tokenizer


def _write_tokenizer(folder: Path, standin: Standin, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": standin.bos, "eos_token": standin.eos,
        "model_max_length": 4096, "padding_side": "left", "processor_class": "LlavaNextProcessor",
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    if not standin.byte_level:
        settings["unk_token"] = "<unk>"
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "added_tokens.json", {IMAGE_TOKEN: tokenizer.token_to_id(IMAGE_TOKEN)})
    _write_json(folder / "special_tokens_map.json", {"eos_token": standin.eos})
    if standin.byte_level:
        model = json.loads(tokenizer.to_str())["model"]
        _write_json(folder / "vocab.json", model["vocab"])
        merges = "\n".join(" ".join(pair) for pair in model["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def _write_processor(folder: Path, standin: Standin) -> None:
    images = {
        "aspect_ratio_setting": "anyres", "crop_size": {"height": TILE, "width": TILE}, "do_center_crop": True,
        "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "image_grid_pinpoints": PINPOINTS, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "LlavaNextImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaNextProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": TILE},
    }  # fmt: skip
    _write_json(folder / "preprocessor_config.json", images)
    processor = {
        "image_token": IMAGE_TOKEN, "num_additional_image_tokens": 1, "patch_size": PATCH,
        "processor_class": "LlavaNextProcessor", "vision_feature_select_strategy": "default",
    }  # fmt: skip
    _write_json(folder / "processor_config.json", processor)
    _write_json(folder / "chat_template.json", {"chat_template": standin.template})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
