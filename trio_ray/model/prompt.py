"""From a sample's turns to the model's token ids."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from trio_ray.source.sample import Turn

IMAGE_MARKER = "<image>"


class PromptWriter:
    """Renders turns by the model's chat template, or by a plain template, and tokenizes them.

    Safe to use from several threads: fast tokenizers are not, so tokenizing takes a lock.

    Args:
        processor: a `LlavaNextProcessor`.
        image_token_id: id that stands for an image in the model's input.
        template: text with `{prompt}`, used instead of the chat template.
    """

    def __init__(self, processor: Any, image_token_id: int, template: str | None) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._image_token_id = image_token_id
        self._image_token: str = processor.image_token
        self._template = template
        self._lock = threading.Lock()

    def text(self, turns: Sequence[Turn], images: int) -> str:
        """The prompt as text, with one image token for each image; the first user turn gets those that no turn
        places.
        """
        if not any(IMAGE_MARKER in turn.text for turn in turns):
            first = next(number for number, turn in enumerate(turns) if turn.role == "user")
            placed = IMAGE_MARKER * images + "\n" + turns[first].text
            turns = [*turns[:first], Turn("user", placed), *turns[first + 1 :]]
        if self._template is not None:
            joined = "\n".join(turn.text for turn in turns)
            return self._template.replace("{prompt}", joined).replace(IMAGE_MARKER, self._image_token)
        messages = [{"role": turn.role, "content": _content(turn.text)} for turn in turns]
        return self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def ids(self, text: str) -> list[int]:
        """Token ids, each image as one id."""
        # A chat template that writes the beginning-of-sequence token itself must not get a second one.
        bos = self._tokenizer.bos_token
        written = bos is not None and text.startswith(bos)
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=not written)["input_ids"])

    def expand(self, ids: Sequence[int], image_tokens: Sequence[int]) -> list[int]:
        """Repeat the image id of each image as often as the image has tokens."""
        counts = iter(image_tokens)
        expanded: list[int] = []
        for token in ids:
            expanded += [token] * (next(counts) if token == self._image_token_id else 1)
        return expanded

    def decode(self, tokens: Sequence[int]) -> str:
        """An answer as text, without special tokens."""
        with self._lock:
            return self._tokenizer.decode(list(tokens), skip_special_tokens=True).strip()


def _content(text: str) -> list[dict[str, str]]:
    """Split a turn at its image markers into the parts that chat templates want."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_MARKER)):
        if number:
            parts.append({"type": "image"})
        stripped = piece.strip("\n")
        if stripped.strip():
            parts.append({"type": "text", "text": stripped})
    return parts
