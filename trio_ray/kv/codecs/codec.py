"""What every codec is: how the keys and values of a segment become stored tensors and come back."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.kv.batch import SegmentBatch, SegmentShape
from trio_ray.kv.codecs.spec import CodecSpec
from trio_ray.kv.layout import StoredLayout
from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.kv.target import RowTarget

T = TypeVar("T")

KNOWN_LAYOUTS = 2048
"""Layouts of prefixes that a codec keeps, some 10 KB each."""


class CodecError(TrioRayError):
    """A codec that is not known, lacks what it needs, or cannot code keys and values of this shape."""

    exit_code = 2


@dataclass(frozen=True)
class CodedSegments:
    """A coded segment of B samples.

    Attributes:
        tensors: by name, the samples' pieces one behind the other along the first dimension.
        pieces: by name, the length of each sample's piece.
        runs: by name, of each sample the bytes of stretches that differ in how often each byte occurs, as many of
            every sample; only of tensors of bytes, and one stretch where a tensor is not named here.
    """

    tensors: dict[str, Tensor]
    pieces: dict[str, tuple[int, ...]]
    runs: dict[str, list[list[int]]] = field(default_factory=dict)

    def split(self) -> list[dict[str, Tensor]]:
        """Each sample's tensors, which are views."""
        cut = {name: tensor.split(list(self.pieces[name])) for name, tensor in self.tensors.items()}
        samples = len(next(iter(self.pieces.values())))
        return [{name: pieces[sample] for name, pieces in cut.items()} for sample in range(samples)]


@dataclass(frozen=True)
class SegmentToRestore:
    """A segment of B samples on its way back to keys and values.

    Attributes:
        tensors: on the target's device, as `CodedSegments` holds them; each sample's pieces have been checked against
            the codec's layout.
        shapes: of the samples, which differ in rows, images and lead alone.
        position: (T,) int32 in host memory, like `text`: which row is coded how is found there.
        text: (T,) bool, with as many text rows of each sample as `shapes` say.
        target: where the rows go, see `places`.
    """

    tensors: Mapping[str, Tensor]
    shapes: Sequence[SegmentShape]
    position: NDArray[np.int32]
    text: NDArray[np.bool_]
    target: RowTarget

    def places(self) -> NDArray[np.int64]:
        """(T,) the row of the target that each row goes to."""
        return self.target.rows(self.shapes)


def stored_name(number: int, name: str) -> str:
    """The name of a codec's tensor in a container: ahead of it comes the number of its segment."""
    return f"{number}.{name}"


def by_stored_name(segments: Sequence[Mapping[str, T]]) -> dict[str, T]:
    """What each segment has by the name of a codec's tensor, by `stored_name`."""
    return {stored_name(number, name): own[name] for number, own in enumerate(segments) for name in own}


def of_segment(number: int, stored: Mapping[str, T]) -> dict[str, T]:
    """Undo `by_stored_name` for one segment."""
    ahead = stored_name(number, "")
    return {name.removeprefix(ahead): own for name, own in stored.items() if name.startswith(ahead)}


class Codec(ABC):
    """One way to store keys and values. What its `spec` says is stored with the data and never changes its meaning.

    Attributes:
        settings: name and parameters, all that another machine needs to build the same codec.
    """

    Settings: ClassVar[type[CodecSpec]]
    """What the codec is told; its docstring describes the codec in tables, its default for `name` names it."""
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Short names -> the settings that they stand for."""

    settings: CodecSpec

    @classmethod
    def codec_name(cls) -> str:
        """The name that the codec's settings begin with."""
        return str(cls.Settings.model_fields["name"].default)

    @classmethod
    def make(cls, settings: CodecSpec, read_basis: Callable[[str], bytes] | None) -> Codec:
        """The codec with these settings.

        Args:
            settings: of the type `Settings`.
            read_basis: gives the bytes of a calibrated basis for its hash, where there are any.

        Raises:
            CodecError: it cannot be made of what there is.
        """
        return cls(settings)  # type: ignore[call-arg]  # what a codec without a basis is made of

    @property
    def spec(self) -> dict[str, Any]:
        """`settings` as JSON, as identity and headers hold them."""
        return self.settings.model_dump(mode="json")

    @cached_property
    def spec_text(self) -> str:
        """`spec` as the text that headers hold."""
        return json.dumps(self.spec, sort_keys=True, separators=(",", ":"))

    @property
    def name(self) -> str:
        """A short name for tables."""
        return self.settings.name

    @abstractmethod
    def encode(self, batch: SegmentBatch) -> CodedSegments:
        """Code a segment of a batch, on the device that it is on, without waiting for it.

        The same input gives the same bytes on every machine, and each sample's are those it would have alone.
        """

    @abstractmethod
    def layout(self, shape: SegmentShape) -> dict[str, TensorSpec]:
        """Every tensor that `encode` makes of one sample's segment of this shape."""

    @property
    def has_lossless(self) -> bool:
        """Whether its tensors go through the lossless stage."""
        return self.settings.zstd > 0

    def layout_of_all(self, shapes: tuple[SegmentShape, ...]) -> StoredLayout:
        """`layout` of all segments of a prefix. Kept for prefixes of the same shapes, since a reader compares every
        sample with it.
        """
        known = self._known_layouts  # of several threads
        layout = known.get(shapes)
        if layout is None:
            if len(known) >= KNOWN_LAYOUTS:
                known.clear()
            specs = by_stored_name([self.layout(shape) for shape in shapes])
            layout = known[shapes] = StoredLayout.of(specs, self.has_lossless)
        return layout

    @cached_property
    def _known_layouts(self) -> dict[tuple[SegmentShape, ...], StoredLayout]:
        return {}

    def layout_bytes(self, shapes: tuple[SegmentShape, ...]) -> int:
        """Bytes of a sample's segments of these shapes, ahead of the lossless stage."""
        return int(self.layout_of_all(shapes).sizes.sum())

    @abstractmethod
    def restore(self, segments: Sequence[SegmentToRestore]) -> None:
        """Undo `encode` for the segments of a batch and write their keys and values into their targets, without waiting
        for the device. It is given the segments together, since each copy of small numbers to a GPU takes time.
        """
