"""Which rows of a segment are coded how: image rows, and the protected ones among text and sinks.

What sizes a tensor follows from numbers that the host knows, so nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from trio_ray.kv.batch import SegmentShape
from trio_ray.method.rows import inverted, select_rows
from trio_ray.tensors import on_device


@dataclass(frozen=True)
class RowClass:
    """The rows of one class in a packed segment of B samples, ascending.

    Attributes:
        rows: (R,) int64 row numbers.
        counts: how many of them each sample has.
    """

    rows: Tensor
    counts: tuple[int, ...]


def protected_images(shape: SegmentShape, sinks: int) -> int:
    """How many of a sample's image rows count as sinks: those that begin within the first `sinks` rows."""
    return min(shape.images, max(0, sinks - shape.lead))


def protected_rows(shape: SegmentShape, sinks: int) -> int:
    """Text rows and image rows that count as sinks, of one sample."""
    return shape.rows - shape.images + protected_images(shape, sinks)


def split_rows(text: Tensor, shapes: Sequence[SegmentShape], sinks: int) -> tuple[RowClass, RowClass]:
    """The image rows that are no sinks, and the protected rows.

    Args:
        text: (T,) bool, True for text rows, the samples one behind the other.
        shapes: of each sample; their row and image counts must be those of `text`.
        sinks: image rows among the first this many rows of a sample are protected.
    """
    image = inverted(text)
    starts = accumulate((shape.images for shape in shapes), initial=0)
    sink_numbers = [
        start + number
        for start, shape in zip(starts, shapes, strict=False)
        for number in range(protected_images(shape, sinks))
    ]
    if sink_numbers:
        rows = select_rows(image, sum(shape.images for shape in shapes))
        image.index_fill_(0, rows[on_device(sink_numbers, text.device)], False)
    protected = tuple(protected_rows(shape, sinks) for shape in shapes)
    images = tuple(shape.rows - count for shape, count in zip(shapes, protected, strict=True))
    others = select_rows(inverted(image), sum(protected))
    return RowClass(select_rows(image, sum(images)), images), RowClass(others, protected)
