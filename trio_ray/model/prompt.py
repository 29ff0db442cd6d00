"""From a sample's turns to the model's token ids."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from trio_ray.errors import TrioRayError
from trio_ray.source.sample import Turn

IMAGE_MARKER = "<image>"
_STAND_IN = "x"


class PromptError(TrioRayError):
    """The template or the tokenizer cannot write these turns, or not behind what is stored already."""


class PromptWriter:
    """Renders turns by the model's chat template, or by a plain template, and tokenizes them.

    Safe to use from several threads: fast tokenizers are not, so tokenizing takes a lock.

    Args:
        processor: a `LlavaNextProcessor`.
        image_token_id: id that stands for an image in the model's input.
        template: text with `{prompt}`, used instead of the chat template. It writes a single turn. An `<image>` in it
            is where all of a sample's images go.
    """

    def __init__(self, processor: Any, image_token_id: int, template: str | None) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._image_token_id = image_token_id
        self._image_token: str = processor.image_token
        self._template = None if template is None else template.replace(self._image_token, IMAGE_MARKER)
        self._lock = threading.Lock()

    @property
    def has_template(self) -> bool:
        """Whether there is anything to write prompts by."""
        return self._template is not None or bool(getattr(self._processor, "chat_template", None))

    @property
    def template_name(self) -> str:
        """What the prompts are written by, for messages."""
        return "the chat template" if self._template is None else "prompt.template"

    def text(self, turns: Sequence[Turn], images: int) -> str:
        """The prompt as text, with one image token for each image; the first user turn gets those that no turn places.

        Raises:
            PromptError: there is no user turn, or the template cannot write these turns.
        """
        if self._template is not None:
            return self._plain(turns, images)
        if not any(IMAGE_MARKER in turn.text for turn in turns):
            first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
            if first is None:
                raise PromptError("there is no user turn that could hold the image")
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
            raise PromptError(f"a turn behind a stored prompt cannot place an image: {turns!r:.200}")
        if not prompt.endswith(self._image_token):
            # What the prompt consists of is no longer known, and need not be: templates write turn after turn.
            return self._follow(prompt, Turn("user", _STAND_IN), turns, then_answer)
        images = prompt.count(self._image_token)
        question = Turn("user", IMAGE_MARKER * images + "\n" + turns[0].text)
        asked = self.text([question], images)
        if not asked.startswith(prompt):
            raise PromptError(
                f"{self.template_name} writes {prompt[-80:]!r} in another way where {turns[0].text[:80]!r} follows"
            )
        return self._follow(asked, question, turns[1:], then_answer) if turns[1:] else asked

    def new_ids(self, held: Sequence[int], whole: str, prompt: str) -> tuple[int, list[int]]:
        """How to get from tokens that a model has read to those of a text: (how many of them stay, what follows).

        Args:
            held: the tokens that it has read, each image as one id; the first are those of `prompt`.
            whole: the text, from its beginning.
            prompt: the stored part of the text, whose tokens cannot be taken back.

        Raises:
            PromptError: the text does not begin with the prompt, or adds nothing to it.
        """
        ids, fixed = self.ids_behind(prompt, whole)
        stay = next((n for n, (old, new) in enumerate(zip(held, ids, strict=False)) if old != new), len(held))
        if stay < fixed or len(ids) <= fixed:
            raise PromptError(
                f"the stored prompt's {fixed} tokens are not the first of {whole[-200:]!r}: the prompt's template or "
                "tokenizer is not the one that it was stored with"
            )
        stay = min(stay, len(ids) - 1)  # something must be read anew, or nothing would say what comes next
        return stay, ids[stay:]

    def ids_behind(self, prompt: str, whole: str) -> tuple[list[int], int]:
        """Token ids of a text that begin with those of its stored prompt, and how many the prompt has.

        Some tokenizers merge the prompt's last characters with what follows (a newline with a newline, a space with a
        word). The stored tokens stay then, as they do when the model itself goes on from them, and what follows is
        tokenized alone.

        Raises:
            PromptError: `whole` does not begin with the prompt, or what follows cannot be tokenized alone.
        """
        head, ids = self.ids(prompt), self.ids(whole)
        if ids[: len(head)] == head:
            return ids, len(head)
        if not whole.startswith(prompt):
            raise PromptError(
                f"the stored prompt's {len(head)} tokens are not the first of {whole[-200:]!r}: the prompt's template "
                "or tokenizer is not the one that it was stored with"
            )
        tail = whole[len(prompt) :]
        candidates = [own for own in self._tails(tail) if own]
        for own in candidates:
            if self._text(head + own) == self._text(ids):
                return head + own, len(head)
        for own in candidates:
            if self._text(own).strip() == tail.strip():
                return head + own, len(head)
        raise PromptError(f"the tokenizer cannot put {tail[:80]!r} behind the tokens of {prompt[-80:]!r}")

    def _tails(self, tail: str) -> Iterator[list[int]]:
        """A text's tokens in the middle of a text: behind an image token, which merges with nothing, and alone."""
        with self._lock:
            anchored = list(self._tokenizer(self._image_token + tail, add_special_tokens=False)["input_ids"])
            alone = list(self._tokenizer(tail, add_special_tokens=False)["input_ids"])
        if anchored[:1] == [self._image_token_id]:
            yield anchored[1:]
        yield alone

    def _text(self, ids: Sequence[int]) -> str:
        with self._lock:
            return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _follow(self, prompt: str, question: Turn, turns: Sequence[Turn], then_answer: bool) -> str:
        """`prompt`, and what the template writes of `turns` behind a prompt that ends with `question`."""
        if self._template is not None:
            if then_answer or len(turns) != 1:
                raise PromptError(
                    "prompt.template writes a single turn; a conversation needs the model's chat template"
                )
            return f"{prompt}{'' if prompt[-1:].isspace() else ' '}{turns[0].text}"
        head, whole = self._render([question], then_answer=True), self._render([question, *turns], then_answer)
        if whole.startswith(head):
            return prompt + whole[len(head) :]
        bare = head.rstrip()
        if bare and whole.startswith(bare):  # spaces or newlines that only the generation prompt ends with
            return prompt + whole[len(bare) :].lstrip()
        raise PromptError(f"the template writes {head[-80:]!r} in another way where {turns[0].text[:80]!r} follows")

    def _plain(self, turns: Sequence[Turn], images: int) -> str:
        assert self._template is not None
        if len(turns) != 1 or turns[0].role != "user":
            roles = ", ".join(turn.role for turn in turns)
            raise PromptError(
                f"prompt.template writes a single user turn, and this sample has the turns {roles}; leave "
                "prompt.template out to use the model's chat template, or give source.turns: first"
            )
        text, template = turns[0].text, self._template
        if IMAGE_MARKER in template:
            text = text.replace(IMAGE_MARKER, "").strip()
            template = template.replace(IMAGE_MARKER, self._image_token * images, 1)
        elif IMAGE_MARKER not in text:
            text = IMAGE_MARKER * images + "\n" + text
        return template.replace("{prompt}", text).replace(IMAGE_MARKER, self._image_token)

    def _render(self, turns: Sequence[Turn], then_answer: bool) -> str:
        messages = [{"role": turn.role, "content": _content(turn.text)} for turn in turns]
        try:
            text = str(self._processor.apply_chat_template(messages, add_generation_prompt=then_answer, tokenize=False))
        except Exception as error:  # a template is a program: it may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise PromptError(f"the chat template cannot write these turns ({reason[:300]})") from None
        for turn in turns:
            if turn.role == "system" and turn.text.strip() not in text:
                raise PromptError("the chat template leaves out the system turn")
        return text

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
