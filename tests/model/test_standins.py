"""Stand-ins for each of the llava-hf checkpoints give transformers' answers token for token, with transformers' own
processor, where nothing is pruned.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tests.checkpoints import STANDINS
from tests.model.corpus import picture, png, prepare
from trio_ray.config import ModelConfig
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.replica import Replica
from trio_ray.source.sample import Sample, Turn

NEW_TOKENS = 6
QUESTIONS = ("What is in this picture?", "How many squares are there?\nAnswer briefly.", "Zürich 東京?")
SIZES = ((40, 50), (300, 50), (20, 200))
HISTORY = [Turn("user", "<image>\nIs there a circle?"), Turn("assistant", "Yes"), Turn("user", "How many?")]


@pytest.mark.parametrize("name", STANDINS)
def test_a_stand_in_answers_as_transformers_does(name: str, standins: dict[str, Path]) -> None:
    folder = standins[name]
    replica = Replica.load(ModelConfig(name=str(folder), dtype="float32"), device=torch.device("cpu"))
    samples = [
        Sample(f"s{number}", number, (png(picture(*size, number)),), (Turn("user", question),))
        for number, (size, question) in enumerate(zip(SIZES, QUESTIONS, strict=True))
    ]
    samples.append(Sample("history", 3, (png(picture(33, 77)),), tuple(HISTORY)))
    prepared = prepare(replica, samples)
    whole = Method(Schedule(replica.decoder.depth, (1,), retention=1.0, weights=(1,)), Trio())
    answers = replica.generate(replica.prefill(prepared, whole).prefixes, NEW_TOKENS)
    model, processor = _with_transformers(folder)
    for sample, ready, answer in zip(samples, prepared, answers, strict=True):
        inputs = _inputs(processor, sample)
        assert list(ready.input_ids) == inputs["input_ids"][0].tolist()
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True)
        assert answer == processor.tokenizer.decode(output[0, ready.rows :], skip_special_tokens=True).strip()
    assert len(set(answers)) == len(answers), "the prompts must not all get one answer"


def _with_transformers(folder: Path) -> tuple[Any, Any]:
    images = LlavaNextImageProcessorPil.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = LlavaNextProcessor.from_pretrained(folder, image_processor=images, tokenizer=tokenizer)
    return LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), processor


def _inputs(processor: Any, sample: Sample) -> Any:
    """By the chat template, with the picture in the first turn, as transformers' documentation shows."""
    image = {"type": "image", "image": Image.open(BytesIO(sample.images[0]))}
    messages = []
    for number, turn in enumerate(sample.turns):
        text = {"type": "text", "text": turn.text.removeprefix("<image>\n")}
        messages.append({"role": turn.role, "content": [image, text] if number == 0 else [text]})
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
