"""Which images belong to the turns of one prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from trio_ray.source.conversation import Exchange
from trio_ray.source.rejection import Rejected, listed
from trio_ray.source.sample import Reason, Turn
from trio_ray.source.turns import IMAGE_MARKER

_NUMBERED = re.compile(r"<image[ _]?(\d+)>")
"""How MMMU and others say which of a row's images stands where."""


def place_images(
    exchange: Exchange, images: tuple[bytes, ...], record: Mapping[str, object]
) -> tuple[tuple[Turn, ...], tuple[bytes, ...]]:
    """The turns and the images that they show, in the order of their markers.

    A prompt without markers shows all images. One whose markers are fewer than the images shows the first of them where
    the rest of the conversation places the others: with one image a turn, the first turn has the first.

    Raises:
        Rejected: TEXT_ONLY where there is no image and none is placed, IMAGE_MISSING where one is placed, IMAGE_COUNT
            where markers and images do not fit.
    """
    turns = exchange.turns
    markers = sum(turn.text.count(IMAGE_MARKER) for turn in turns)
    if not images:
        raise _no_image(exchange, record)
    if not exchange.markers and any(_NUMBERED.search(turn.text) for turn in turns):
        return _by_number(turns, images)
    if exchange.markers == len(images) and markers < len(images):
        if markers == 0:
            raise Rejected(Reason.TEXT_ONLY, "the images are placed by later turns, and this prompt has none")
        return turns, images[:markers]
    if markers not in (0, len(images)):
        raise Rejected(Reason.IMAGE_COUNT, f"{markers} {IMAGE_MARKER} markers for {len(images)} images")
    return turns, images


def _no_image(exchange: Exchange, record: Mapping[str, object]) -> Rejected:
    cure = f"; its fields are: {listed(record)}; source.image_column and image_member name where images are"
    if exchange.markers or any(_NUMBERED.search(turn.text) for turn in exchange.turns):
        return Rejected(Reason.IMAGE_MISSING, f"the prompt places an image, and the sample has none{cure}")
    return Rejected(
        Reason.TEXT_ONLY,
        f"the sample has no image and places none; source.text_only: skip passes over such samples{cure}",
    )


def _by_number(turns: tuple[Turn, ...], images: tuple[bytes, ...]) -> tuple[tuple[Turn, ...], tuple[bytes, ...]]:
    """`<image 2>` becomes a marker where it stands first, and `image 2` where it stands again."""
    order: list[int] = []

    def marker(found: re.Match[str]) -> str:
        number = int(found[1])
        if number in order:
            return f"image {number}"
        order.append(number)
        return IMAGE_MARKER

    placed = tuple(replace(turn, text=_NUMBERED.sub(marker, turn.text)) for turn in turns)
    if sorted(order) != list(range(1, len(images) + 1)):
        raise Rejected(
            Reason.IMAGE_COUNT, f"the text places the images {listed(sorted(order))}, and there are {len(images)}"
        )
    return placed, tuple(images[number - 1] for number in order)
