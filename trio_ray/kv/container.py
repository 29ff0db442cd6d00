"""The stored form of one prefix: a safetensors file whose header says everything needed to read it.

Tensors: `<segment>.<name>` from the codec, `kept.<prune point>`, `top_ids`, `top_logprobs`. The `trio_ray` entry of the
metadata is a JSON header (schemas/prefix.schema.json). Nothing is believed: header, shapes and sizes are checked
against the codec's own layout before a tensor is built.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.kv.codec import Codec, SegmentShape, codec_named
from trio_ray.kv.prefix import Prefix, Segment

CONTAINER_VERSION = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_HEADER_BYTES = 1 << 20


class ContainerError(TrioRayError):
    """The bytes are not a prefix that this version can read."""


class FingerprintMismatch(ContainerError):
    """The prefix belongs to a cache of another identity."""


def checksum(data: bytes | memoryview) -> str:
    """xxh3-128 of stored bytes, in hexadecimal; what the Parquet row holds."""
    return xxhash.xxh3_128_hexdigest(data)


def encode_prefix(prefix: Prefix, codec: Codec, key: str, fingerprint: str) -> bytes:
    """A prefix as bytes.

    Args:
        prefix: with keys and values on the CPU.
        codec: how they are stored.
        key: the sample's key, so that a swapped object is noticed.
        fingerprint: hash of the cache's identity.
    """
    tensors: dict[str, Tensor] = {
        "top_ids": prefix.top_ids.clone(),
        "top_logprobs": prefix.top_logprobs.clone(),
    }
    for point, kept in enumerate(prefix.kept):
        tensors[f"kept.{point}"] = kept.clone()
    shapes = []
    for number, segment in enumerate(prefix.segments):
        shapes.append(SegmentShape.of(segment))
        tensors.update({f"{number}.{name}": tensor for name, tensor in codec.encode(segment).items()})
    header = {
        "version": CONTAINER_VERSION,
        "key": key,
        "fingerprint": fingerprint,
        "codec": codec.name,
        "dtype": str(shapes[0].dtype).removeprefix("torch."),
        "length": prefix.length,
        "kv_heads": shapes[0].kv_heads,
        "head_dim": shapes[0].head_dim,
        "segments": [{"first_layer": s.first_layer, "layers": s.layers, "rows": s.rows} for s in shapes],
        "kept": [len(kept) for kept in prefix.kept],
        "top_k": len(prefix.top_ids),
    }
    return save(tensors, metadata={"trio_ray": json.dumps(header, sort_keys=True)})


def decode_prefix(data: bytes, *, key: str | None = None, fingerprint: str | None = None) -> Prefix:
    """Bytes to a prefix, on the CPU.

    Args:
        data: the whole container, its checksum already compared by the caller that knows it.
        key: the key that must be in the header, if given.
        fingerprint: the identity hash that must be in the header, if given.

    Raises:
        FingerprintMismatch: made under another identity.
        ContainerError: anything else that is not as written.
    """
    header, layout = _read_header(data)
    try:
        version, codec_name = header["version"], header["codec"]
        if version != CONTAINER_VERSION:
            raise ContainerError(f"container version {version!r}; this program reads {CONTAINER_VERSION}")
        if key is not None and header["key"] != key:
            raise ContainerError(f"it holds the prefix of {header['key']!r}")
        if fingerprint is not None and header["fingerprint"] != fingerprint:
            raise FingerprintMismatch(f"fingerprint {header['fingerprint']!r} is not the cache's {fingerprint!r}")
        codec = codec_named(codec_name)
        shapes = _segment_shapes(header)
        expected = _expected_layout(header, codec, shapes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ContainerError(f"header is not as written: {type(error).__name__} {error}") from None
    if layout != expected:
        raise ContainerError("tensors do not have the names, types and shapes that the header promises")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError) as error:
        raise ContainerError(f"not a readable safetensors file: {error}") from None
    return Prefix(
        length=header["length"],
        segments=tuple(_decode_segment(number, shape, codec, tensors) for number, shape in enumerate(shapes)),
        kept=tuple(tensors[f"kept.{point}"] for point in range(len(header["kept"]))),
        top_ids=tensors["top_ids"],
        top_logprobs=tensors["top_logprobs"],
    )


def _decode_segment(number: int, shape: SegmentShape, codec: Codec, tensors: dict[str, Tensor]) -> Segment:
    names = codec.layout(shape)
    return codec.decode({name: tensors[f"{number}.{name}"] for name in names}, shape)


def _segment_shapes(header: dict[str, Any]) -> list[SegmentShape]:
    dtype = DTYPES[header["dtype"]]
    numbers = [header[name] for name in ("length", "kv_heads", "head_dim", "top_k")]
    numbers += [s[name] for s in header["segments"] for name in ("first_layer", "layers", "rows")] + [*header["kept"]]
    if any(type(number) is not int for number in numbers):  # JSON's 30.0 and true would compare equal to whole numbers
        raise TypeError("sizes are no whole numbers")
    shapes = [
        SegmentShape(s["first_layer"], s["layers"], s["rows"], header["kv_heads"], header["head_dim"], dtype)
        for s in header["segments"]
    ]
    layer = 0
    for shape in shapes:
        if shape.first_layer != layer or shape.layers < 1 or not 0 <= shape.rows <= header["length"]:
            raise ValueError(f"segments {header['segments']}")
        layer += shape.layers
    if not shapes:
        raise ValueError("no segments")
    return shapes


def _expected_layout(
    header: dict[str, Any], codec: Codec, shapes: list[SegmentShape]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "top_ids": (torch.int32, (header["top_k"],)),
        "top_logprobs": (torch.float32, (header["top_k"],)),
    }
    wanted |= {f"kept.{point}": (torch.int32, (count,)) for point, count in enumerate(header["kept"])}
    for number, shape in enumerate(shapes):
        wanted |= {f"{number}.{name}": entry for name, entry in codec.layout(shape).items()}
    return {name: (SAFETENSORS_NAMES[dtype], size) for name, (dtype, size) in wanted.items()}


SAFETENSORS_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.int8: "I8",
}


def _read_header(data: bytes) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...]]]]:
    """Our header, and name -> (dtype, shape) of every tensor, read without building one."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= size <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise ContainerError("it is no safetensors file, or cut off")
    try:
        entries = json.loads(data[8 : 8 + size])
        header = json.loads(entries.pop("__metadata__")["trio_ray"])
        layout = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
        if not isinstance(header, dict):
            raise TypeError("header is no object")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContainerError(f"header cannot be read: {type(error).__name__} {error}") from None
    return header, layout
