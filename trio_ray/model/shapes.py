"""Model folders of well-known shapes with random weights: configuration, tokenizer and processor, no weights."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    MistralConfig,
    PretrainedConfig,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from trio_ray.model.loading import BUNDLED_FOLDER, load_processor
from trio_ray.model.random_weights import RANDOM_WEIGHTS_FILE

SHAPES = ("vicuna-7b", "mistral-7b", "tiny")

LLAVA_NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
LLAVA_NEXT_VOCABULARY = 32064
LLAVA_NEXT_TILE, LLAVA_NEXT_PATCH = 336, 14


def write_model(folder: Path, shapes: str, seed: int = 0) -> Path:
    """Write a model folder that `Replica.load` and a job's `model.name` take, a few kilobytes in all.

    `vicuna-7b` and `mistral-7b` have the geometry of llava-hf/llava-v1.6-vicuna-7b-hf and
    llava-hf/llava-v1.6-mistral-7b-hf (their config.json); `tiny` is the bundled model's. The tokenizer is the bundled
    model's in all of them: one token a word, and words that it does not know are one token too.

    Args:
        folder: made where it is missing; files of the same name are replaced.
        shapes: one of `SHAPES`.
        seed: of the weights, which are drawn when the model is loaded.

    Raises:
        KeyError: unknown shapes.
    """
    if shapes not in SHAPES:
        raise KeyError(shapes)
    folder.mkdir(parents=True, exist_ok=True)
    processor, config = _tiny() if shapes == "tiny" else _llava_next(_text_config(shapes))
    config.architectures = ["LlavaNextForConditionalGeneration"]
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    GenerationConfig.from_pretrained(BUNDLED_FOLDER, local_files_only=True).save_pretrained(folder)
    (folder / RANDOM_WEIGHTS_FILE).write_text(json.dumps({"seed": seed}) + "\n", encoding="utf-8")
    return folder


def _tiny() -> tuple[LlavaNextProcessor, LlavaNextConfig]:
    return load_processor(BUNDLED_FOLDER)[0], LlavaNextConfig.from_pretrained(BUNDLED_FOLDER)


def _text_config(shapes: str) -> PretrainedConfig:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if shapes == "vicuna-7b":
        return LlamaConfig(
            vocab_size=LLAVA_NEXT_VOCABULARY, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4}, **special,
        )  # fmt: skip
    return MistralConfig(
        vocab_size=LLAVA_NEXT_VOCABULARY, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=32768, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, sliding_window=None, **special,
    )  # fmt: skip


def _llava_next(text: PretrainedConfig) -> tuple[LlavaNextProcessor, LlavaNextConfig]:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_FOLDER, local_files_only=True)
    tokenizer.model_max_length = text.max_position_embeddings
    tile = LLAVA_NEXT_TILE
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=LLAVA_NEXT_PINPOINTS,
    )
    processor = LlavaNextProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=LLAVA_NEXT_PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=load_processor(BUNDLED_FOLDER)[0].chat_template,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=tile,
        patch_size=LLAVA_NEXT_PATCH, projection_dim=768,
    )  # fmt: skip
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=processor.image_token_id,
        image_grid_pinpoints=LLAVA_NEXT_PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return processor, config
