"""The CPU's share of a sample: decode its images, cut tiles, write the prompt. Runs in threads ahead of the model."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import xxhash
from torch import Tensor

from trio_ray.method.schedule import Schedule
from trio_ray.model.prompt import IMAGE_MARKER, PromptError, PromptWriter, up_to_stop
from trio_ray.model.tiles import Tiler
from trio_ray.source.images import ImageRejected, decode_image
from trio_ray.source.sample import BadSample, Reason, Sample, Turn

IMAGES_REMEMBERED = 16
"""Decoded images kept by hash, so that questions about one image that follow each other decode it once."""


@dataclass(frozen=True)
class PreparedImage:
    """An image ready for the vision tower. `tiles`: (n, 3, tile, tile) uint8; `hash`: xxh3-128 of the encoded bytes."""

    hash: str
    height: int
    width: int
    tiles: Tensor
    token_map: Tensor
    grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return len(self.token_map)


@dataclass(frozen=True)
class ImagePart:
    """What is stored of a prompt that a generic instruction ends: `prompt` and `prompt_ids` up to its last image, and
    the sample's own `turns`, without image markers.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class AnswerTokens:
    """The true answer as it stands behind what is stored of the prompt: the tokens `before` it (the question, where the
    prefix ends with the image), and its own `ids`, the stop token last.
    """

    before: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class PreparedSample:
    """A sample ready for the model. `prompt_ids` hold each image as one id, `input_ids` one id a row.

    `image_part` says what is stored where the prompt ends with a generic instruction; `answer_tokens` are there where
    they were asked for, the prompt's tokens stay as they are when the answer follows, and the context has room.
    """

    key: str
    index: int
    prompt: str
    prompt_ids: tuple[int, ...]
    input_ids: tuple[int, ...]
    images: tuple[PreparedImage, ...]
    answer: str | None
    image_part: ImagePart | None = None
    answer_tokens: AnswerTokens | None = None

    @property
    def rows(self) -> int:
        """Rows of the unpruned prompt."""
        return len(self.input_ids)

    @property
    def image_tokens(self) -> int:
        """Image tokens of all images."""
        return sum(image.tokens for image in self.images)


class SamplePreparer:
    """Turns samples into `PreparedSample`s; thread-safe.

    Args:
        tiler: the model's tiles.
        writer: the model's prompts.
        image_token_id: id of an image row.
        context: longest prompt the model takes, in rows.
        max_pixels: larger images are rejected before they are decoded.
        instruction: stands in for every sample's own text, which is kept as `ImagePart.turns`.
        stop_tokens: what may end an answer, the usual one first; none where the answers' tokens are not wanted.
        schedule: rejects samples whose fixed budget is used up before the first token can be dropped.
    """

    def __init__(
        self,
        tiler: Tiler,
        writer: PromptWriter,
        image_token_id: int,
        context: int,
        max_pixels: int,
        instruction: str | None = None,
        stop_tokens: Sequence[int] = (),
        schedule: Schedule | None = None,
    ) -> None:
        self._tiler = tiler
        self._writer = writer
        self._image_token_id = image_token_id
        self._context = context
        self._max_pixels = max_pixels
        self._instruction = instruction
        self._stop_tokens = stop_tokens
        self._schedule = schedule
        self._images: OrderedDict[str, Future[PreparedImage]] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, sample: Sample | BadSample) -> PreparedSample | BadSample:
        """Decode, tile and tokenize one sample; what is wrong with it comes back as a `BadSample`, and so does a bad
        one.
        """
        if isinstance(sample, BadSample):
            return sample
        try:
            images = tuple(self._image(data) for data in sample.images)
        except ImageRejected as error:
            return BadSample(sample.key, sample.index, error.reason, error.detail)
        turns = sample.turns if self._instruction is None else (Turn("user", self._instruction),)
        if self._instruction is not None and any(turn.role == "system" for turn in sample.turns):
            detail = "a system turn cannot stand in a prefix of scope image, which other questions follow"
            return BadSample(sample.key, sample.index, Reason.TEMPLATE_FAILED, detail)
        try:
            prompt = self._writer.text(turns, len(images))
        except PromptError as error:
            return BadSample(sample.key, sample.index, Reason.TEMPLATE_FAILED, str(error))
        ids = self._writer.ids(prompt)
        placed = sum(token == self._image_token_id for token in ids)
        if placed != len(images):
            detail = f"the prompt places {placed} images, the sample has {len(images)}"
            return BadSample(sample.key, sample.index, Reason.IMAGE_COUNT, detail)
        expanded = self._writer.expand(ids, [image.tokens for image in images])
        if len(expanded) >= self._context:
            detail = f"{len(expanded)} rows, and the model's context is {self._context}"
            return BadSample(sample.key, sample.index, Reason.PROMPT_TOO_LONG, detail)
        prepared = PreparedSample(sample.key, sample.index, prompt, tuple(ids), tuple(expanded), images, sample.answer)
        if self._schedule is not None and (refused := over_budget(prepared, self._schedule)) is not None:
            return refused
        if self._instruction is not None:
            prepared = replace(prepared, image_part=self._image_part(prompt, sample.turns))
        if self._stop_tokens and sample.answer:
            with contextlib.suppress(PromptError):
                prepared = replace(prepared, answer_tokens=self._answer_tokens(prepared, sample.answer))
        return prepared

    def good(self, items: Iterable[Sample | BadSample]) -> Iterator[PreparedSample]:
        """The samples that the model can take, in order; what is wrong with the others is passed over."""
        return (sample for sample in map(self.prepare, items) if isinstance(sample, PreparedSample))

    def _image_part(self, prompt: str, turns: Sequence[Turn]) -> ImagePart:
        head = self._writer.up_to_images(prompt)
        own = tuple(Turn(turn.role, turn.text.replace(IMAGE_MARKER, "").strip()) for turn in turns)
        return ImagePart(head, tuple(self._writer.ids(head)), own)

    def _answer_tokens(self, sample: PreparedSample, answer: str) -> AnswerTokens | None:
        """Behind what is stored of the sample's prompt; None where the model's context is too short for it.

        Raises:
            PromptError: the template or tokenizer does not leave the prompt as it is when an answer follows.
        """
        part = sample.image_part
        prompt, held, turns = (
            (part.prompt, part.prompt_ids, part.turns) if part else (sample.prompt, sample.prompt_ids, ())
        )
        fixed = len(held)
        asked: Sequence[int] = held
        if part:
            prompt = self._writer.continued(part.prompt, turns)
            asked, _ = self._writer.ids_behind(part.prompt, prompt)
        whole = self._writer.continued(
            part.prompt if part else prompt, (*turns, Turn("assistant", answer)), then_answer=False
        )
        stay, ids = self._writer.new_ids(asked, whole, prompt)
        ids = up_to_stop(ids, self._stop_tokens)
        if sample.rows + stay - fixed + len(ids) > self._context:
            return None
        return AnswerTokens(tuple(asked[fixed:stay]), tuple(ids))

    def _image(self, data: bytes) -> PreparedImage:
        digest = xxhash.xxh3_128_hexdigest(data)
        with self._lock:
            future = self._images.get(digest)
            mine = future is None
            if future is None:
                future = self._images[digest] = Future()
                while len(self._images) > IMAGES_REMEMBERED:
                    self._images.popitem(last=False)
        if mine:
            try:
                future.set_result(self._decode(digest, data))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _decode(self, digest: str, data: bytes) -> PreparedImage:
        pixels = decode_image(data, self._max_pixels)
        height, width = pixels.shape[:2]
        return PreparedImage(
            hash=digest,
            height=height,
            width=width,
            tiles=self._tiler.tiles(pixels),
            token_map=self._tiler.token_map(height, width),
            grid=self._tiler.placement(height, width).grid,
        )


def over_budget(sample: PreparedSample, schedule: Schedule) -> BadSample | None:
    """Why a sample cannot be pruned to a schedule's fixed budget: it is used up before the first token can be dropped.
    None where it can.
    """
    if schedule.has_room_for(sample.image_tokens):
        return None
    detail = (
        f"{sample.image_tokens} image tokens, all held by the layers before prune point {schedule.prune_points[0]}, "
        f"are more than method.tokens = {schedule.tokens:g} allows; let method.prune_points begin earlier"
    )
    return BadSample(sample.key, sample.index, Reason.IMAGE_TOO_LARGE, detail)
