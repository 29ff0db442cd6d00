"""From a sample's turns to the model's token ids."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from trio_ray.errors import TrioRayError
from trio_ray.source.sample import Turn

IMAGE_MARKER = "<image>"
_STAND_IN = "x"


class PromptError(TrioRayError):
    """A prompt cannot be continued as asked: the template would write what is already stored in another way."""


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
        return self._render(turns, then_answer=True)

    def up_to_images(self, text: str) -> str:
        """A prompt's text up to the end of its last image."""
        return text[: text.rindex(self._image_token) + len(self._image_token)]

    def continued(self, prompt: str, turns: Sequence[Turn], then_answer: bool = True) -> str:
        """The whole text of a conversation that begins with a stored prompt, as the template writes it.

        Args:
            prompt: ends where the model would answer, or with an image (`up_to_images`).
            turns: what follows: from the answer on, or behind an image from the question on. No images.
            then_answer: the text ends where the model would answer next; else with the last turn.

        Raises:
            PromptError: a turn places an image, or the template does not leave a prompt as it is when more follows.
        """
        if any(IMAGE_MARKER in turn.text for turn in turns):
            raise PromptError(f"a turn behind a stored prompt cannot place an image: {turns!r}")
        if not prompt.endswith(self._image_token):
            # What the prompt consists of is no longer known, and need not be: templates write turn after turn.
            return self._follow(prompt, Turn("user", _STAND_IN), turns, then_answer)
        images = IMAGE_MARKER * prompt.count(self._image_token) + "\n"
        question = Turn("user", images + turns[0].text)
        asked = self._render([question], then_answer=True)
        if not asked.startswith(prompt):
            raise PromptError(
                f"the template writes {prompt[-80:]!r} in another way where {turns[0].text[:80]!r} follows"
            )
        return self._follow(asked, question, turns[1:], then_answer) if turns[1:] else asked

    def new_ids(self, held: Sequence[int], whole: str, fixed: int) -> tuple[int, list[int]]:
        """How to get from tokens that a model has read to those of a text: (how many of them stay, what follows).

        Args:
            held: the tokens that it has read, each image as one id.
            whole: the text, from its beginning.
            fixed: so many of `held` cannot be taken back.

        Raises:
            PromptError: the text's tokens do not begin with these.
        """
        ids = self.ids(whole)
        stay = next((n for n, (old, new) in enumerate(zip(held, ids, strict=False)) if old != new), len(held))
        if stay < fixed or len(ids) <= fixed:
            raise PromptError(
                f"the stored prompt's {fixed} tokens are not the first of {whole[-200:]!r}: the prompt's template or "
                "tokenizer is not the one that it was stored with"
            )
        stay = min(stay, len(ids) - 1)  # something must be read anew, or nothing would say what comes next
        return stay, ids[stay:]

    def _follow(self, prompt: str, question: Turn, turns: Sequence[Turn], then_answer: bool) -> str:
        """`prompt`, and what the template writes of `turns` behind a prompt that ends with `question`."""
        if self._template is not None:
            if then_answer or len(turns) != 1:
                raise PromptError(
                    "prompt.template writes a single turn; a conversation needs the model's chat template"
                )
            return f"{prompt}{'' if prompt[-1:].isspace() else ' '}{turns[0].text}"
        head, whole = self._render([question], then_answer=True), self._render([question, *turns], then_answer)
        if not whole.startswith(head):
            raise PromptError(f"the template writes {head[-80:]!r} in another way where {turns[0].text[:80]!r} follows")
        return prompt + whole[len(head) :]

    def _render(self, turns: Sequence[Turn], then_answer: bool) -> str:
        if self._template is not None:
            joined = "\n".join(turn.text for turn in turns)
            return self._template.replace("{prompt}", joined).replace(IMAGE_MARKER, self._image_token)
        messages = [{"role": turn.role, "content": _content(turn.text)} for turn in turns]
        return self._processor.apply_chat_template(messages, add_generation_prompt=then_answer, tokenize=False)

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


def up_to_stop(ids: Sequence[int], stop_tokens: Sequence[int]) -> list[int]:
    """An answer's tokens up to the first that ends it; the usual one, `stop_tokens[0]`, behind those that none ends."""
    ends = next((number for number, token in enumerate(ids) if token in stop_tokens), None)
    return [*ids, *stop_tokens[:1]] if ends is None else list(ids[: ends + 1])
