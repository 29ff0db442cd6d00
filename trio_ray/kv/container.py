"""The stored form of one prefix: a safetensors file whose header says everything needed to read it.

Tensors: `<segment>.<name>` from the codec, and `rows` with all the rest (`row_bits`). Where the codec's spec has a zstd
level, each is stored as bytes of the lossless stage (`lossless`). The `trio_ray` entry of the metadata is a JSON header
(schemas/prefix.schema.json). Nothing is believed: header, shapes and sizes are checked against the codec's own layout
before a tensor is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.codecs.codec import Codec, CodecError, by_stored_name
from trio_ray.kv.codecs.spec import CodecSpec
from trio_ray.kv.encode import CodedPrefix
from trio_ray.kv.header import (
    ENTRY,
    HUFFMAN,
    NONE,
    ZSTD,
    ContainerError,
    Header,
    Places,
    header_of,
    locate_tensors,
    parse_header,
    split_texts,
)
from trio_ray.kv.layout import ROWS, StoredLayout
from trio_ray.kv.lossless.zstd import compress, decompress, decompress_planes
from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.kv.row_bits import RowFields, pack_rows, unpack_rows
from trio_ray.kv.serialise import serialise

WORTH_ZSTD = 100
"""It is compressed where that makes the codec's tensors and it smaller by one in so many bytes."""

Stored = bytes | memoryview | Tensor
"""Bytes in host memory; a tensor is flat uint8."""

Kind = tuple[object, ...]


@dataclass(frozen=True)
class CheckedContainer:
    """A container that is as its header says, in host memory and not yet restored.

    Attributes:
        shapes: of its segments.
        lossless: how the codec's tensors are compressed, see `LOSSLESS`.
        data: flat uint8, the whole container.
        tensor: the same, where it was given as one.
        layout: of the codec's tensors.
        begins, stored: (n,) int64, where in `data` each of them begins, and its stored bytes.
        length: rows of the prompt, see `Prefix`.
        fields: what `rows` holds.
    """

    shapes: tuple[SegmentShape, ...]
    lossless: str
    data: NDArray[np.uint8]
    tensor: Tensor | None
    layout: StoredLayout
    begins: NDArray[np.int64]
    stored: NDArray[np.int64]
    length: int
    fields: RowFields

    @property
    def kind(self) -> Kind:
        """What containers that are restored together have in common."""
        return self.lossless, *((s.first_layer, s.layers, s.kv_heads, s.head_dim, s.dtype) for s in self.shapes)

    def prefix(self, segments: tuple[Segment, ...]) -> Prefix:
        """The prefix, whose segments have been restored."""
        own = self.fields
        return Prefix(self.length, self.shapes[0].lead, segments, own.kept, own.top_ids, own.top_logprobs)

    def stored_bytes(self, number: int) -> NDArray[np.uint8]:
        """Of the codec's tensor of this number in the layout."""
        return self.data[self.begins[number] : self.begins[number] + self.stored[number]]


CHECKSUM_DIFFERS = "its bytes are not those that were written (checksum differs)"


def checksum(data: bytes | memoryview) -> str:
    """xxh3-128 of stored bytes, in hexadecimal; what the Parquet row holds. Large ones are hashed without Python's
    lock.
    """
    return xxhash.xxh3_128_hexdigest(data)


def write_container(coded: CodedPrefix, settings: CodecSpec, key: str, fingerprint: str) -> memoryview:
    """A coded prefix as bytes. What is not through the lossless stage goes through it here, in the caller's thread and
    without Python's lock.

    Args:
        coded: in host memory.
        settings: of the codec that has coded it.
        key: the sample's key, so that a swapped object is noticed.
        fingerprint: hash of the cache's identity.
    """
    level = settings.zstd
    plain = by_stored_name(coded.segments)
    tensors = {name: compress(tensor, level) if level else tensor.contiguous() for name, tensor in plain.items()}
    tensors |= coded.frames
    rows = pack_rows(coded.length, coded.positions, coded.texts, coded.kept, coded.top_ids, coded.top_logprobs)
    packed = compress(rows, level) if level else rows
    saved = len(rows) - len(packed)
    # Reading it without zstd is a third faster.
    tensors[ROWS] = packed if saved * WORTH_ZSTD > sum(tensor.nbytes for tensor in tensors.values()) else rows
    lossless = HUFFMAN if coded.frames else ZSTD if level else NONE
    header = header_of(coded, settings.model_dump(mode="json"), lossless, key, fingerprint)
    return serialise(tensors, {ENTRY: header})


def check_containers(
    items: Sequence[tuple[str | None, Stored]], codec: Codec, fingerprint: str | None = None
) -> list[CheckedContainer | ContainerError]:
    """Compare containers with what their headers and the codec promise, without any work on a device.

    May run in several threads at once.

    Args:
        items: of each sample the key that must be in its header, if any, and the whole container in host memory, its
            checksum already compared by the caller that knows it. What is returned may hold views of it, so it must
            not change before `restore_containers` is done with them.
        codec: the cache's.
        fingerprint: the identity hash that must be in the headers, if given.

    Returns:
        For each sample its container, or what is wrong with it: `FingerprintMismatch` where it was made under another
        identity or with another codec, else `ContainerError`.
    """
    found = [_described_or_error(data, codec, key, fingerprint) for key, data in items]
    described = [one for one in found if isinstance(one, _Described)]
    fields = iter(unpack_rows([one.rows for one in described], [one.header.counts for one in described]))
    return [one.with_fields(next(fields)) if isinstance(one, _Described) else one for one in found]


@dataclass(frozen=True)
class _Described:
    """A container that is as its header says, but for what `rows` holds.

    Attributes:
        data, whole: its bytes, as they were given and as an array.
        header: what it says.
        layout, places: of its tensors.
        rows: the tensor `rows`.
    """

    data: Stored
    whole: NDArray[np.uint8]
    header: Header
    layout: StoredLayout
    places: Places
    rows: NDArray[np.uint8]

    def with_fields(self, fields: RowFields | None) -> CheckedContainer | ContainerError:
        """With what `rows` holds, if it is sound."""
        if fields is None:
            return ContainerError("not as written: it has not as many text rows, positions or kept tokens as it says")
        return CheckedContainer(
            shapes=self.header.shapes,
            lossless=self.header.lossless,
            data=self.whole,
            tensor=self.data if isinstance(self.data, Tensor) else None,
            layout=self.layout,
            begins=self.places.begins[:-1],
            stored=self.places.stored[:-1],
            length=self.header.counts.length,
            fields=fields,
        )


def _described_or_error(
    data: Stored, codec: Codec, key: str | None, fingerprint: str | None
) -> _Described | ContainerError:
    try:
        return _described(data, codec, key, fingerprint)
    except ContainerError as error:
        return error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, CodecError) as error:
        return ContainerError(f"not as written: {type(error).__name__} {error}")


def _described(data: Stored, codec: Codec, key: str | None, fingerprint: str | None) -> _Described:
    whole = data.numpy() if isinstance(data, Tensor) else np.frombuffer(data, np.uint8)
    texts = split_texts(whole.data)
    header = parse_header(texts.header, codec, key, fingerprint)
    if (header.lossless != NONE) != codec.has_lossless:
        raise ValueError(f"lossless {header.lossless!r} with zstd {codec.settings.zstd}")
    layout, size = codec.layout_of_all(header.shapes), header.counts.size
    places = locate_tensors(texts, layout, size, len(whole))
    begin, stored = int(places.begins[-1]), int(places.stored[-1])
    return _Described(data, whole, header, layout, places, decompress_planes(whole[begin : begin + stored], size))


def decompress_tensor(sample: CheckedContainer, number: int) -> Tensor:
    """The tensor of this number in the layout as the codec made it, on the CPU. Raises what `decompress` raises."""
    spec, stored = sample.layout.specs[number], sample.stored_bytes(number)
    if sample.layout.are_planes:
        return decompress(stored, spec)
    if not len(stored):
        return torch.empty(spec.shape, dtype=spec.dtype)
    is_usable = stored.flags.writeable and not stored.ctypes.data % spec.dtype.itemsize
    return torch.from_numpy(stored if is_usable else stored.copy()).view(spec.dtype).view(spec.shape)
