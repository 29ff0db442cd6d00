"""The shape, vocabulary and prompt of the models that can be trained, in Hugging Face classes only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from trio_ray.lab.scenes.families import SHAPES, SIGNS, Family
from trio_ray.lab.scenes.views import PINPOINTS, TILE

PATCH = 14
PATCHES = (TILE // PATCH) ** 2
MAX_TILES = 5
MAX_ROWS = 2048
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, BOS, EOS, UNKNOWN, IMAGE = range(len(SPECIAL))


@dataclass(frozen=True)
class Recipe:
    """What tells one trained model from another: the scenes it learns, decoder layers, heads of keys and values."""

    family: Family
    layers: int
    kv_heads: int


RECIPES: Mapping[str, Recipe] = {"bundled": Recipe(SHAPES, 16, 6), "second": Recipe(SIGNS, 24, 2)}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """One token a word or sign, upper and lower case apart; decoding puts no space before a sign."""
    words = [*SPECIAL, "USER", "ASSISTANT", *family.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=MAX_ROWS,
        clean_up_tokenization_spaces=False,
    )


def build_image_processor() -> LlavaNextImageProcessorPil:
    """The image class that needs no torchvision and so gives the same pixels everywhere."""
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=[list(grid) for grid in PINPOINTS],
    )


def build_processor(family: Family) -> LlavaNextProcessor:
    """The processor of a family's words."""
    return LlavaNextProcessor(
        image_processor=build_image_processor(),
        tokenizer=build_tokenizer(family),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlavaNextConfig:
    """10 or 13 million weights; the vision features are those of the second-last of seven layers, as in LLaVA-NeXT."""
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=7,
        num_attention_heads=6,
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=192,
    )
    text = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=recipe.layers,
        num_attention_heads=6,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=MAX_ROWS,
        initializer_range=0.04,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[list(grid) for grid in PINPOINTS],
    )


def build_model(recipe: Recipe, seed: int) -> LlavaNextForConditionalGeneration:
    """An untrained model in float32."""
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(build_config(recipe, build_tokenizer(recipe.family)))
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, max_new_tokens=16, do_sample=False
    )
    return model.float()
