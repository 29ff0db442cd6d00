"""What a container says of itself: the JSON header, and the list of its tensors that safetensors puts behind it.

Only what cannot be known otherwise is parsed: the sizes in the header, and where the tensors end. From these the list
of tensors follows letter by letter, and the bytes are compared with it. So nothing is believed, and the many tensors of
a sample cost one comparison.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trio_ray.errors import TrioRayError
from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.encode import CodedPrefix
from trio_ray.kv.layout import ROWS, StoredLayout
from trio_ray.kv.lossless.zstd import is_compressed
from trio_ray.kv.row_bits import RowCounts, kept_end

CONTAINER_VERSION = 3
ENTRY = "trio_ray"
"""The header's name in safetensors' metadata."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_HEADER_BYTES = 1 << 20
MAX_NUMBER = 1 << 31
"""Above every size in a header."""
MAX_LAYERS = 1 << 12
"""More than a decoder has. Work on a container grows with them even where they hold no bytes."""

NONE, ZSTD, HUFFMAN = LOSSLESS = ("none", "zstd", "huffman")
"""How the codec's tensors are compressed: not at all; as zstd frames of any kind; as zstd frames whose blocks are cut
by the codec's layout and hold Huffman codes alone, which a GPU can read. `rows` is never `huffman`."""

_BEGIN, _END = f'{{"__metadata__":{{"{ENTRY}":'.encode(), b'}"}'
"""What stands ahead of the header, a JSON string; and how it ends: a quote within it follows a backslash."""
_PLACE = re.compile(rb'"data_offsets":\[\d{1,15},(\d{1,15})\]')
_SIZES = frozenset(("first_layer", "layers", "rows", "images", "lead"))


class ContainerError(TrioRayError):
    """The bytes are not a prefix that this version can read."""


class FingerprintMismatch(ContainerError):
    """The prefix belongs to a cache of another identity, or was made with another codec. `field` names what differs."""

    def __init__(self, field: str, stored: object, wanted: object) -> None:
        super().__init__(f"made with {field} = {stored!r}, but this cache has {wanted!r}")
        self.field = field


@dataclass(frozen=True)
class Header:
    """What a header says, checked for types and ranges.

    Attributes:
        shapes: of the segments.
        counts: of rows.
        lossless: how the codec's tensors are compressed, see `LOSSLESS`.
    """

    shapes: tuple[SegmentShape, ...]
    counts: RowCounts
    lossless: str


class Places(NamedTuple):
    """Where the n tensors of a layout and then `rows` are in a container: (n + 1,) int64, and (n + 1,) their bytes."""

    begins: NDArray[np.int64]
    stored: NDArray[np.int64]


class Texts(NamedTuple):
    """A container's JSON texts: its header, and the list of tensors behind it; and where the tensors begin."""

    header: str
    entries: bytes
    start: int


def header_of(coded: CodedPrefix, spec: Mapping[str, Any], lossless: str, key: str, fingerprint: str) -> str:
    """The header of a coded prefix. The same prefix gives the same text."""
    shape = coded.shapes[0]
    header = {
        "version": CONTAINER_VERSION,
        "key": key,
        "fingerprint": fingerprint,
        "codec": spec,
        "lossless": lossless,
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
    return canonical(header)


def canonical(value: object) -> str:
    """Equal texts for equal JSON, where Python holds 1 == True."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def split_texts(data: memoryview) -> Texts:
    """The texts of a container's first bytes. Raises `ContainerError` where there are none."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= size <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise ContainerError("it is no safetensors file, or cut off")
    text = bytes(data[8 : 8 + size])
    stop = text.find(_END) + 2
    if not text.startswith(_BEGIN) or stop < 2:
        raise ContainerError("header cannot be read: it does not begin with ours")
    try:
        header = json.loads(text[len(_BEGIN) : stop])
    except ValueError as error:
        raise ContainerError(f"header cannot be read: {error}") from None
    return Texts(header, text[stop + 1 :].rstrip(b" "), 8 + size)


def parse_header(text: str, codec: Codec, key: str | None, fingerprint: str | None) -> Header:
    """A header that is the one wanted.

    Args:
        text: its JSON.
        codec: of the cache.
        key: the key that must be in it, if given.
        fingerprint: the identity hash that must be in it, if given.

    Raises:
        FingerprintMismatch: made under another identity or with another codec; names the field.
        ContainerError: another version, or another key.
        KeyError, TypeError, ValueError: anything else that is not as written.
    """
    fields = json.loads(text)
    if fields["version"] != CONTAINER_VERSION:
        raise ContainerError(f"container version {fields['version']!r}; this program reads {CONTAINER_VERSION}")
    if key is not None and fields["key"] != key:
        raise ContainerError(f"it holds the prefix of {fields['key']!r}")
    if fingerprint is not None and fields["fingerprint"] != fingerprint:
        raise FingerprintMismatch("fingerprint", fields["fingerprint"], fingerprint)
    if not text.startswith(f'{{"codec":{codec.spec_text},'):
        _check_codec(fields["codec"], codec.spec)
    return _checked(fields)


def locate_tensors(texts: Texts, layout: StoredLayout, rows: int, end: int) -> Places:
    """Where the stored tensors are. Names, types, sizes and places are compared with what would have been written.

    Args:
        texts: of the container.
        layout: of its tensors.
        rows: bytes of the tensor `rows`, ahead of the lossless stage.
        end: of the container.

    Raises:
        ValueError: they are not what they should be.
    """
    if layout.are_planes:
        ends = [int(stop) for stop in _PLACE.findall(texts.entries)]
        if len(ends) != len(layout.names) + 1:
            raise ValueError("tensors do not have the names that the header promises")
    else:
        ends = layout.plain_ends(rows)
    if texts.start + ends[-1] != end:
        raise ValueError(f"the tensors end at byte {texts.start + ends[-1]}, the container at {end}")
    if texts.entries != layout.entries(rows, ends).encode():
        raise ValueError("tensors do not have the names, types and places that the header promises")
    stops = np.array(ends, np.int64)
    stored = np.diff(stops, prepend=0)
    sizes = np.append(layout.sizes, rows)
    fits = (stored == sizes) | is_compressed(stored, sizes)
    if not fits.all():
        number = int(fits.argmin())
        name = (*layout.names, ROWS)[number]
        raise ValueError(f"tensor {name!r} of {stored[number]} bytes cannot stand for {sizes[number]} bytes")
    return Places(texts.start + stops - stored, stored)


def _check_codec(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in ["name", *sorted({*stored, *wanted})]:
        ours, theirs = wanted.get(name), stored.get(name)
        if canonical(ours) != canonical(theirs):
            raise FingerprintMismatch(f"codec.{name}", theirs, ours)


def _checked(fields: Mapping[str, Any]) -> Header:
    segments: Sequence[Mapping[str, Any]] = fields["segments"]
    if any(segment.keys() != _SIZES for segment in segments):
        raise ValueError(f"segments {segments}")
    length, kv_heads, head_dim = fields["length"], fields["kv_heads"], fields["head_dim"]
    numbers = [length, kv_heads, head_dim, fields["kept_end"], fields["top_k"], *fields["kept"]]
    for segment in segments:
        numbers += segment.values()
    if {*map(type, numbers)} != {int}:  # JSON's 30.0 and true would compare equal to whole numbers
        raise TypeError("sizes are no whole numbers")
    if min(numbers) < 0 or max(numbers) >= MAX_NUMBER:
        raise ValueError("sizes are out of range")
    if not (kv_heads and head_dim):
        raise ValueError("keys and values without heads or without numbers in them")
    dtype = DTYPES[fields["dtype"]]
    shapes = tuple(
        [
            SegmentShape(s["first_layer"], s["layers"], s["rows"], s["images"], s["lead"], kv_heads, head_dim, dtype)
            for s in segments
        ]
    )
    layer = 0
    for shape in shapes:
        texts = shape.rows - shape.images
        if shape.first_layer != layer or not shape.layers or not 0 <= shape.lead <= texts or shape.rows > length:
            raise ValueError(f"segments {segments}")
        layer += shape.layers
    if not 0 < layer <= MAX_LAYERS:
        raise ValueError(f"{layer} layers")
    if fields["lossless"] not in LOSSLESS:
        raise ValueError(f"lossless {fields['lossless']!r} is none of {', '.join(LOSSLESS)}")
    counts = RowCounts(
        length=length,
        rows=tuple([shape.rows for shape in shapes]),
        texts=tuple([shape.rows - shape.images for shape in shapes]),
        kept=tuple(fields["kept"]),
        kept_end=fields["kept_end"],
        top_k=fields["top_k"],
    )
    return Header(shapes, counts, fields["lossless"])
