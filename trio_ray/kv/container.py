"""The stored form of one prefix: a safetensors file whose header says everything needed to read it.

Tensors: `<segment>.<name>` from the codec, and `rows` with all the rest (`row_bits`). Where the codec's spec has a zstd
level, each is stored as bytes of the lossless stage (`lossless`). The `trio_ray` entry of the metadata is a JSON header
(schemas/prefix.schema.json). Nothing is believed: header, shapes and sizes are checked against the codec's own layout
before a tensor is built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.codecs.codec import Codec, CodecError
from trio_ray.kv.codecs.spec import CodecSpec
from trio_ray.kv.encode import CodedPrefix
from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.kv.lossless.zstd import compress, decompress, decompress_planes, is_compressed
from trio_ray.kv.prefix import Prefix
from trio_ray.kv.row_bits import RowCounts, kept_end, pack_rows, unpack_rows
from trio_ray.kv.serialise import DTYPE_NAMES, serialise

CONTAINER_VERSION = 3
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ROWS = "rows"
"""The tensor that no codec makes, see `row_bits`."""
WORTH_ZSTD = 100
"""It is compressed where that makes the codec's tensors and it smaller by one in so many bytes."""
MAX_HEADER_BYTES = 1 << 20
MAX_NUMBER = 1 << 31
"""Above every size in a header."""
MAX_LAYERS = 1 << 12
"""More than a decoder has. Work on a container grows with them even where they hold no bytes."""


NONE, ZSTD, HUFFMAN = LOSSLESS = ("none", "zstd", "huffman")
"""How the codec's tensors are compressed: not at all; as zstd frames of any kind; as zstd frames whose blocks are cut
by the codec's layout and hold Huffman codes alone, which a GPU can read. `rows` is never `huffman`."""


class ContainerError(TrioRayError):
    """The bytes are not a prefix that this version can read."""


class FingerprintMismatch(ContainerError):
    """The prefix belongs to a cache of another identity, or was made with another codec. `field` names what differs."""

    def __init__(self, field: str, stored: object, wanted: object) -> None:
        super().__init__(f"made with {field} = {stored!r}, but this cache has {wanted!r}")
        self.field = field


@dataclass(frozen=True)
class Header:
    """What a header says, checked for types and ranges."""

    shapes: tuple[SegmentShape, ...]
    counts: RowCounts
    lossless: str


Stored = bytes | memoryview | Tensor
"""Bytes in host memory; a tensor is flat uint8."""

T = TypeVar("T")
Kind = tuple[object, ...]


class StoredPiece(NamedTuple):
    """A sample's tensor among the bytes of its container: what it is, where it begins, and its stored bytes."""

    spec: TensorSpec
    begin: int
    stored: int


@dataclass(frozen=True)
class CheckedContainer:
    """A container that is as its header says, in host memory and not yet restored.

    Attributes:
        shapes: of its segments.
        lossless: how the codec's tensors are compressed, see `LOSSLESS`.
        data: flat uint8, the whole container.
        pinned: the same as a tensor, where it is part of one in pinned memory.
        segments: by segment the codec's tensors by name.
        position, text: (T,) int32 and bool, see `Segment`, of all segments one behind the other.
        frame: the prefix without its segments.
    """

    shapes: tuple[SegmentShape, ...]
    lossless: str
    data: NDArray[np.uint8]
    pinned: Tensor | None
    segments: tuple[dict[str, StoredPiece], ...]
    position: NDArray[np.int32]
    text: NDArray[np.bool_]
    frame: Prefix

    @property
    def kind(self) -> Kind:
        """What containers that are restored together have in common."""
        return self.lossless, *((s.first_layer, s.layers, s.kv_heads, s.head_dim, s.dtype) for s in self.shapes)


def checksum(data: bytes | memoryview) -> str:
    """xxh3-128 of stored bytes, in hexadecimal; what the Parquet row holds."""
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
    shape = coded.shapes[0]
    header = {
        "version": CONTAINER_VERSION,
        "key": key,
        "fingerprint": fingerprint,
        "codec": settings.model_dump(mode="json"),
        "lossless": HUFFMAN if any(coded.frames) else ZSTD if settings.zstd else NONE,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "length": coded.length,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "segments": [
            {"first_layer": s.first_layer, "layers": s.layers, "rows": s.rows, "images": s.images, "lead": s.lead}
            for s in coded.shapes
        ],
        "kept": [len(kept) for kept in coded.kept],
        "kept_end": kept_end(coded.kept),
        "top_k": len(coded.top_ids),
    }
    level = settings.zstd
    plain = _named(coded.segments)
    tensors = {name: compress(tensor, level) if level else tensor.contiguous() for name, tensor in plain.items()}
    tensors |= _named(coded.frames)
    rows = pack_rows(coded.length, coded.positions, coded.texts, coded.kept, coded.top_ids, coded.top_logprobs)
    packed = compress(rows, level) if level else rows
    saved = len(rows) - len(packed)
    # Reading it without zstd is a third faster.
    tensors[ROWS] = packed if saved * WORTH_ZSTD > sum(tensor.nbytes for tensor in tensors.values()) else rows
    return serialise(tensors, {"trio_ray": json.dumps(header, sort_keys=True, separators=(",", ":"))})


def check_container(
    data: Stored, codec: Codec, key: str | None = None, fingerprint: str | None = None
) -> CheckedContainer:
    """Compare a container with what its header and the codec promise, without any work on a device.

    May run in several threads at once.

    Args:
        data: the whole container in host memory, its checksum already compared by the caller that knows it. What is
            returned may hold views of it, so it must not change before `restore_containers` is done with them.
        codec: the cache's.
        key: the key that must be in the header, if given.
        fingerprint: the identity hash that must be in the header, if given.

    Raises:
        FingerprintMismatch: made under another identity or with another codec; names the field.
        ContainerError: anything else that is not as written.
    """
    whole = data.numpy() if isinstance(data, Tensor) else np.frombuffer(data, np.uint8)
    fields, entries, start = _read_header(whole)
    try:
        _check_origin(fields, codec, key, fingerprint)
        header = _parse_header(fields)
        has_lossless = header.lossless != NONE
        if has_lossless != (codec.settings.zstd > 0):
            raise ValueError(f"lossless {header.lossless!r} with zstd {codec.settings.zstd}")
        segments = tuple(codec.layout(shape) for shape in header.shapes)
        layout = {ROWS: TensorSpec(torch.uint8, (header.counts.size,)), **_named(segments)}
        pieces = _check_entries(entries, layout, has_lossless, start, len(whole))
        packed = pieces[ROWS]
        rows = unpack_rows(
            decompress_planes(whole[packed.begin : packed.begin + packed.stored], packed.spec.size), header.counts
        )
        return CheckedContainer(
            shapes=header.shapes,
            lossless=header.lossless,
            data=whole,
            pinned=data if isinstance(data, Tensor) and data.is_pinned() else None,
            segments=tuple({name: pieces[f"{n}.{name}"] for name in own} for n, own in enumerate(segments)),
            position=rows.position,
            text=rows.text,
            frame=Prefix(header.counts.length, (), rows.kept, rows.top_ids, rows.top_logprobs),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, CodecError) as error:
        raise ContainerError(f"not as written: {type(error).__name__} {error}") from None


def _named(segments: Sequence[Mapping[str, T]]) -> dict[str, T]:
    return {f"{number}.{name}": own[name] for number, own in enumerate(segments) for name in own}


def _read_header(data: NDArray[np.uint8]) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Our header, safetensors' entry of every tensor, and where the tensors begin."""
    size = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or not 2 <= size <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise ContainerError("it is no safetensors file, or cut off")
    try:
        entries = json.loads(data[8 : 8 + size].tobytes())
        fields = json.loads(entries.pop("__metadata__")["trio_ray"])
        if not isinstance(fields, dict):
            raise TypeError("header is no object")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContainerError(f"header cannot be read: {type(error).__name__} {error}") from None
    return fields, entries, 8 + size


def _check_origin(fields: Mapping[str, Any], codec: Codec, key: str | None, fingerprint: str | None) -> None:
    if fields["version"] != CONTAINER_VERSION:
        raise ContainerError(f"container version {fields['version']!r}; this program reads {CONTAINER_VERSION}")
    if key is not None and fields["key"] != key:
        raise ContainerError(f"it holds the prefix of {fields['key']!r}")
    if fingerprint is not None and fields["fingerprint"] != fingerprint:
        raise FingerprintMismatch("fingerprint", fields["fingerprint"], fingerprint)
    stored, wanted = fields["codec"], codec.spec
    if _canonical(stored) == _canonical(wanted):
        return
    for name in ["name", *sorted({*stored, *wanted})]:
        ours, theirs = wanted.get(name), stored.get(name)
        if _canonical(ours) != _canonical(theirs):
            raise FingerprintMismatch(f"codec.{name}", theirs, ours)


def _canonical(value: object) -> str:
    """Equal texts for equal JSON, where Python holds 1 == True."""
    return json.dumps(value, sort_keys=True)


def _parse_header(fields: Mapping[str, Any]) -> Header:
    segments = fields["segments"]
    names = ("first_layer", "layers", "rows", "images", "lead")
    if any(set(segment) != set(names) for segment in segments):
        raise ValueError(f"segments {segments}")
    numbers = [fields[name] for name in ("length", "kv_heads", "head_dim", "kept_end", "top_k")]
    numbers += [segment[name] for segment in segments for name in names] + [*fields["kept"]]
    if any(type(number) is not int for number in numbers):  # JSON's 30.0 and true would compare equal to whole numbers
        raise TypeError("sizes are no whole numbers")
    if not all(0 <= number < MAX_NUMBER for number in numbers):
        raise ValueError("sizes are out of range")
    if not (fields["kv_heads"] and fields["head_dim"]):
        raise ValueError("keys and values without heads or without numbers in them")
    common = {"kv_heads": fields["kv_heads"], "head_dim": fields["head_dim"], "dtype": DTYPES[fields["dtype"]]}
    shapes = tuple(SegmentShape(**segment, **common) for segment in segments)
    layer = 0
    for shape in shapes:
        texts = shape.rows - shape.images
        if (
            shape.first_layer != layer
            or not shape.layers
            or not 0 <= shape.lead <= texts
            or shape.rows > fields["length"]
        ):
            raise ValueError(f"segments {segments}")
        layer += shape.layers
    if not 0 < layer <= MAX_LAYERS:
        raise ValueError(f"{layer} layers")
    if fields["lossless"] not in LOSSLESS:
        raise ValueError(f"lossless {fields['lossless']!r} is none of {', '.join(LOSSLESS)}")
    counts = RowCounts(
        length=fields["length"],
        rows=tuple(shape.rows for shape in shapes),
        texts=tuple(shape.rows - shape.images for shape in shapes),
        kept=tuple(fields["kept"]),
        kept_end=fields["kept_end"],
        top_k=fields["top_k"],
    )
    return Header(shapes, counts, fields["lossless"])


def _check_entries(
    entries: Mapping[str, Any], layout: Mapping[str, TensorSpec], has_lossless: bool, start: int, end: int
) -> dict[str, StoredPiece]:
    """Names, types, sizes and places of the stored tensors against what the codec would store.

    Args:
        entries: of safetensors' header.
        layout: the tensors before the lossless stage.
        has_lossless: whether there is one.
        start, end: between them the container holds its tensors, one behind the other.
    """
    if set(entries) != set(layout):
        raise ValueError("tensors do not have the names that the header promises")
    pieces = {}
    for name, tensor in layout.items():
        entry = entries[name]
        dtype, shape, (begin, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if type(begin) is not int or type(stop) is not int:
            raise TypeError(f"tensor {name!r} lies at {begin!r} to {stop!r}")
        stored = stop - begin
        if not has_lossless:
            fits = dtype == DTYPE_NAMES[tensor.dtype] and shape == tensor.shape and stored == tensor.size
        else:
            fits = (
                dtype == "U8" and shape == (stored,) and (stored == tensor.size or is_compressed(stored, tensor.size))
            )
        if not fits:
            raise ValueError(f"tensor {name!r} is {dtype} {shape} of {stored} bytes, which cannot stand for {tensor}")
        pieces[name] = StoredPiece(tensor, start + begin, stored)
    for begin, stored in sorted((piece.begin, piece.stored) for piece in pieces.values()):
        if begin != start:
            raise ValueError("the tensors do not lie one behind the other")
        start += stored
    if start != end:
        raise ValueError(f"the tensors end at byte {start}, the container at {end}")
    return pieces


def decompress_piece(data: NDArray[np.uint8], piece: StoredPiece, has_lossless: bool) -> Tensor:
    """A stored tensor as the codec made it, on the CPU."""
    stored = data[piece.begin : piece.begin + piece.stored]
    if has_lossless:
        return decompress(stored, piece.spec)
    if not piece.stored:
        return torch.empty(piece.spec.shape, dtype=piece.spec.dtype)
    is_usable = stored.flags.writeable and not stored.ctypes.data % piece.spec.dtype.itemsize
    return torch.from_numpy(stored if is_usable else stored.copy()).view(piece.spec.dtype).view(piece.spec.shape)
