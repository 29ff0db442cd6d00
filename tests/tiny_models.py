"""Small random LLaVA-NeXT models of every supported text backbone, made and saved in a second."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

WORDS = [
    "<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:", "what", "is", "the", "colour", "of", "shape",
    "?", "red", "blue", "green", "circle", "square", "how", "many", "in", "this", "picture", "describe", "it",
    "briefly", "a", "there", "left", "right", "above", "one", "two", "three", "and", "no", "yes", "please", "answer",
]  # fmt: skip
TILE, PATCH = 28, 7
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} "
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEXT = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
}


def build_model_folder(folder: Path, family: str = "llama", kv_heads: int = 4, layers: int = 8, seed: int = 0) -> Path:
    """Save a random model with its processor, loadable like any hub model."""
    torch.manual_seed(seed)
    text = TEXT[family](
        hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=kv_heads, vocab_size=len(WORDS), max_position_embeddings=2048, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=TILE,
        patch_size=PATCH, projection_dim=16,
    )  # fmt: skip
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=WORDS.index("<image>"),
        image_grid_pinpoints=PINPOINTS,
    )
    model = LlavaNextForConditionalGeneration(config)
    spread_weights(model)
    model.save_pretrained(folder)
    processor(config).save_pretrained(folder)
    return folder


def spread_weights(model: torch.nn.Module) -> None:
    """Initial weights of 0.02 leave every token alike; wider ones make attention, saliency and answers differ."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=1.6 / parameter.shape[-1] ** 0.5)
        elif "embed_tokens" in name or "image_newline" in name:
            torch.nn.init.normal_(parameter, std=1.0)
        elif (
            "language_model" in name
        ):  # norms start at 1 and attention biases at 0, where a forgotten one would not show
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)


def processor(config: LlavaNextConfig) -> LlavaNextProcessor:
    """A word-level tokenizer and the PIL image processor."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaNextProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
