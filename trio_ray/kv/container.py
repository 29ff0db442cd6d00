"""The stored form of one prefix: a safetensors file whose header says everything needed to read it.

Tensors: `<segment>.<name>` from the codec; of all segments, one behind the other, `position` (int32, each segment's
first one and from there the differences) and `text` (bits, lowest first); `kept` of all prune points (int32, likewise
differences); `top_ids`, `top_logprobs`. Where the codec's spec has a zstd level, each is stored as bytes of the
lossless stage (`lossless`). The `trio_ray` entry of the metadata is a JSON header (schemas/prefix.schema.json).
Nothing is believed: header, shapes and sizes are checked against the codec's own layout before a tensor is built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

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
from trio_ray.kv.lossless.zstd import compress, decompress, is_compressed
from trio_ray.kv.prefix import Prefix
from trio_ray.kv.serialise import DTYPE_NAMES, serialise

CONTAINER_VERSION = 3
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SMALL = {"position", "text", "kept", "top_ids", "top_logprobs"}
"""The tensors that no codec makes."""
MAX_HEADER_BYTES = 1 << 20
MAX_NUMBER = 1 << 31
"""Above every size in a header."""
MAX_LAYERS = 1 << 12
"""More than a decoder has. Work on a container grows with them even where they hold no bytes."""


NONE, ZSTD, HUFFMAN = LOSSLESS = ("none", "zstd", "huffman")
"""How the codec's tensors are compressed: not at all; as zstd frames of any kind; as zstd frames whose blocks are cut
by the codec's layout and hold Huffman codes alone, which a GPU can read. Small tensors are never `huffman`."""


class ContainerError(TrioRayError):
    """The bytes are not a prefix that this version can read."""


class FingerprintMismatch(ContainerError):
    """The prefix belongs to a cache of another identity, or was made with another codec. `field` names what differs."""

    def __init__(self, field: str, stored: object, wanted: object) -> None:
        super().__init__(f"made with {field} = {stored!r}, but this cache has {wanted!r}")
        self.field = field


@dataclass(frozen=True)
class Header:
    """What a header says, checked for types and ranges; `kept` holds the image tokens kept at each prune point."""

    length: int
    shapes: tuple[SegmentShape, ...]
    kept: tuple[int, ...]
    top_k: int
    lossless: str


Stored = bytes | memoryview | Tensor
"""Bytes in host memory; a tensor is flat uint8."""

T = TypeVar("T")
Kind = tuple[object, ...]


@dataclass(frozen=True)
class StoredPiece:
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
        "top_k": len(coded.top_ids),
    }
    level = settings.zstd
    tensors = {
        name: compress(tensor, level) if level else tensor.contiguous() for name, tensor in _tensors(coded).items()
    }
    tensors |= _named(coded.frames)
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
        pieces = _check_entries(entries, {**_small_layout(header), **_named(segments)}, has_lossless, start, len(whole))
        small = {name: decompress_piece(whole, pieces[name], has_lossless) for name in SMALL if name in pieces}
        position, text, kept = _check_rows(header, small)
        return CheckedContainer(
            shapes=header.shapes,
            lossless=header.lossless,
            data=whole,
            pinned=data if isinstance(data, Tensor) and data.is_pinned() else None,
            segments=tuple({name: pieces[f"{n}.{name}"] for name in own} for n, own in enumerate(segments)),
            position=position,
            text=text,
            # Copies, since a prefix must not hold on to the container's bytes, whose memory is used again.
            frame=Prefix(header.length, (), kept, small["top_ids"].clone(), small["top_logprobs"].clone()),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, CodecError) as error:
        raise ContainerError(f"not as written: {type(error).__name__} {error}") from None


def _tensors(coded: CodedPrefix) -> dict[str, Tensor]:
    """All that is still to go through the lossless stage."""
    tensors = {
        "position": torch.cat([_differences(position) for position in coded.positions]),
        "text": torch.from_numpy(np.packbits(torch.cat(coded.texts).numpy(), bitorder="little")),
        "top_ids": coded.top_ids,
        "top_logprobs": coded.top_logprobs,
    }
    if coded.kept:
        tensors["kept"] = torch.cat([_differences(kept) for kept in coded.kept])
    return tensors | _named(coded.segments)


def _named(segments: Sequence[Mapping[str, T]]) -> dict[str, T]:
    return {f"{number}.{name}": own[name] for number, own in enumerate(segments) for name in own}


def _differences(ascending: Tensor) -> Tensor:
    return torch.diff(ascending, prepend=ascending.new_zeros(1))


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
    numbers = [fields[name] for name in ("length", "kv_heads", "head_dim", "top_k")]
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
    return Header(fields["length"], shapes, tuple(fields["kept"]), fields["top_k"], fields["lossless"])


def _small_layout(header: Header) -> dict[str, TensorSpec]:
    """The tensors that no codec makes, before their lossless stage."""
    rows = sum(shape.rows for shape in header.shapes)
    layout = {
        "position": TensorSpec(torch.int32, (rows,)),
        "text": TensorSpec(torch.uint8, (-(-rows // 8),)),
        "top_ids": TensorSpec(torch.int32, (header.top_k,)),
        "top_logprobs": TensorSpec(torch.float32, (header.top_k,)),
    }
    if header.kept:
        layout["kept"] = TensorSpec(torch.int32, (sum(header.kept),))
    return layout


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
    for piece in sorted(pieces.values(), key=lambda piece: (piece.begin, piece.stored)):
        if piece.begin != start:
            raise ValueError("the tensors do not lie one behind the other")
        start += piece.stored
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


def _check_rows(
    header: Header, small: Mapping[str, Tensor]
) -> tuple[NDArray[np.int32], NDArray[np.bool_], tuple[Tensor, ...]]:
    """The rows' positions and whether they are text, of all segments, and what each prune point kept."""
    rows = np.array([shape.rows for shape in header.shapes])
    text = np.unpackbits(small["text"].numpy(), count=int(rows.sum()), bitorder="little").view(np.bool_)
    ends = rows.cumsum()
    texts = np.concatenate([[0], text.cumsum()])
    wanted = np.array([shape.rows - shape.images for shape in header.shapes])
    if ((texts[ends] - texts[ends - rows]) != wanted).any():
        raise ValueError("the segments have not as many text rows as the header says")
    position = _ascending(small["position"].numpy(), rows, header.length)
    if not header.kept:
        return position, text, ()
    kept = torch.from_numpy(_ascending(small["kept"].numpy(), np.array(header.kept), MAX_NUMBER))
    return position, text, kept.split(header.kept)


def _ascending(differences: NDArray[np.int32], counts: NDArray[np.int64], end: int) -> NDArray[np.int32]:
    """Runs of int32 numbers, each ascending from 0 to below `end`, from their differences.

    Args:
        differences: (T,), the first number of a run and from there the differences.
        counts: numbers in each run.
        end: above all numbers.
    """
    sums = differences.cumsum(dtype=np.int64)
    starts = counts.cumsum() - counts
    numbers = sums - np.repeat(np.concatenate([[0], sums])[starts], counts)
    heads = starts[counts > 0]
    lasts = (starts + counts - 1)[counts > 0]
    falls = differences <= 0
    falls[heads] = differences[heads] < 0
    if falls.any() or (numbers[lasts] >= end).any():
        raise ValueError("row numbers do not ascend within their range")
    return numbers.astype(np.int32)
