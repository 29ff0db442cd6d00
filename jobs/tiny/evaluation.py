"""How often the exported model is right, asked through its own processor and `generate()`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from trio_ray.lab.scenes import Family, make_questions, render_scene


@torch.inference_mode()
def evaluate(
    folder: Path,
    family: Family,
    questions: int,
    device: torch.device,
    *,
    per_scene: int = 8,
    base_view_only: bool = False,
) -> dict[str, dict[str, int]]:
    """How many whole answers are right on scenes 0, 1, ... of the test split: all, by type, by grid, fine and coarse.

    Args:
        folder: the exported model.
        family: the scenes that it was trained on.
        questions: how many.
        device: on which it answers.
        per_scene: questions asked about each scene.
        base_view_only: blank the tiles, which leaves the model what the base view shows.
    """
    model = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    processor = LlavaNextProcessor.from_pretrained(folder)
    processor.image_processor = LlavaNextImageProcessorPil.from_pretrained(folder)
    rights: dict[str, list[bool]] = defaultdict(list)
    seed = 0
    while len(rights["all"]) < questions:
        rendering = render_scene(seed, "test", family)
        seed += 1
        asked = make_questions(rendering.scene, per_scene)[: questions - len(rights["all"])]
        inputs = processor(
            images=[rendering.image] * len(asked),
            text=[_prompt(processor, question.text) for question in asked],
            padding=True,
            return_tensors="pt",
        ).to(device)
        if base_view_only:
            inputs["pixel_values"][:, 1:] = 0
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answers = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        grid = "x".join(map(str, rendering.scene.view.grid))
        for question, answer in zip(asked, answers, strict=True):
            for name in (
                "all",
                f"type {question.type}",
                f"grid {grid}",
                "fine" if question.fine else "coarse",
            ):
                rights[name].append(answer.strip() == question.answer)
    return {name: {"right": sum(values), "asked": len(values)} for name, values in sorted(rights.items())}


def _prompt(processor: LlavaNextProcessor, question: str) -> str:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    prompt: str = processor.apply_chat_template([message], add_generation_prompt=True)
    return prompt
