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
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.codecs.codec import Codec, CodecError, TensorSpec
from trio_ray.kv.codecs.spec import CodecSpec
from trio_ray.kv.encode import CodedPrefix
from trio_ray.kv.lossless.zstd import expand, is_shrunk, shrink
from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.kv.serialise import DTYPE_NAMES, serialise
from trio_ray.kv.target import Allocate, RowTarget, fresh_targets
from trio_ray.tensors import move_joined, move_together

CONTAINER_VERSION = 2
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_HEADER_BYTES = 1 << 20
MAX_NUMBER = 1 << 31
"""Above every size in a header."""
MAX_LAYERS = 1 << 12
"""More than a decoder has. Work on a container grows with them even where they hold no bytes."""


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


Stored = bytes | memoryview | Tensor
"""Bytes in host memory; a tensor is flat uint8."""

Kind = tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class CheckedContainer:
    """A container that is as its header says, in host memory and not yet restored.

    Attributes:
        shapes: of its segments.
        segments: per segment the codec's tensors by name.
        positions, texts: per segment (rows,) int32 and bool, see `Segment`.
        frame: the prefix without its segments.
    """

    shapes: tuple[SegmentShape, ...]
    segments: tuple[dict[str, Tensor], ...]
    positions: tuple[Tensor, ...]
    texts: tuple[Tensor, ...]
    frame: Prefix

    @property
    def kind(self) -> Kind:
        """What containers that are restored together have in common."""
        return tuple((s.first_layer, s.layers, s.kv_heads, s.head_dim, s.dtype) for s in self.shapes)


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
        name: shrink(tensor, level) if level else tensor.contiguous() for name, tensor in _tensors(coded).items()
    }
    tensors |= _named(coded.frames)
    return serialise(tensors, {"trio_ray": json.dumps(header, sort_keys=True, separators=(",", ":"))})


def read_container(
    data: Stored,
    codec: Codec,
    *,
    key: str | None = None,
    fingerprint: str | None = None,
    device: torch.device | str = "cpu",
) -> Prefix:
    """Bytes to a prefix.

    Args:
        data: the whole container, its checksum already compared by the caller that knows it.
        codec: the cache's.
        key: the key that must be in the header, if given.
        fingerprint: the identity hash that must be in the header, if given.
        device: where keys and values are restored; the small tensors stay on the CPU.

    Raises:
        FingerprintMismatch: made under another identity or with another codec; names the field.
        ContainerError: anything else that is not as written.
    """
    (prefix,) = read_containers([(key, data)], codec, fingerprint=fingerprint, device=device)
    if isinstance(prefix, ContainerError):
        raise prefix
    return prefix


def read_containers(
    items: Sequence[tuple[str | None, Stored]],
    codec: Codec,
    *,
    fingerprint: str | None = None,
    device: torch.device | str = "cpu",
    allocate: Allocate | None = None,
) -> list[Prefix | ContainerError]:
    """`check_container` and then `restore_containers` for the bytes of many samples.

    Args:
        items: of each sample the key that must be in its header, if any, and its bytes.
        codec, fingerprint: see `check_container`.
        device, allocate: see `restore_containers`.

    Returns:
        For each sample its prefix, or the error that `read_container` raises for it.
    """
    outcomes: dict[int, Prefix | ContainerError] = {}
    sound: dict[int, CheckedContainer] = {}
    for number, (key, data) in enumerate(items):
        try:
            sound[number] = check_container(data, codec, key, fingerprint)
        except ContainerError as error:
            outcomes[number] = error
    outcomes |= zip(sound, restore_containers(list(sound.values()), codec, device, allocate), strict=True)
    return [outcomes[number] for number in range(len(items))]


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
        layout = _layout(header, codec)
        stored = _stored_tensors(whole[start:], entries)
        _check_entries(entries, layout, has_lossless=codec.settings.zstd > 0)
        tensors = {name: _expand(stored[name], entries[name], tensor) for name, tensor in layout.items()}
        return _check_rows(header, codec, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, CodecError) as error:
        raise ContainerError(f"not as written: {type(error).__name__} {error}") from None


def restore_containers(
    checked: Sequence[CheckedContainer],
    codec: Codec,
    device: torch.device | str = "cpu",
    allocate: Allocate | None = None,
) -> list[Prefix | ContainerError]:
    """Restore many samples together: on a GPU a few copies and kernels for all of them.

    Args:
        checked: what `check_container` returned.
        codec: the cache's.
        device: where keys and values are restored; the small tensors of a prefix stay on the CPU.
        allocate: says where keys and values go. It is called once for each set of samples whose segments hold the same
            layers. None makes new packed tensors.

    Returns:
        For each sample its prefix, or the error that only restoring it could find. Keys and values are views of the
        targets' tensors, which stay in memory as long as one of the prefixes is in use.
    """
    device = torch.device(device)
    allocate = allocate or fresh_targets(device)
    alike: dict[Kind, list[int]] = {}
    for number, sample in enumerate(checked):
        alike.setdefault(sample.kind, []).append(number)
    outcomes: dict[int, Prefix | ContainerError] = {}
    for numbers in alike.values():
        samples = [checked[number] for number in numbers]
        targets = allocate([sample.shapes for sample in samples])
        outcomes |= zip(numbers, _restore(samples, codec, device, targets), strict=True)
    return [outcomes[number] for number in range(len(checked))]


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


def _named(segments: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{number}.{name}": tensor for number, own in enumerate(segments) for name, tensor in own.items()}


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
    for name in ["name", *sorted({*stored, *wanted})]:
        ours, theirs = wanted.get(name), stored.get(name)
        if json.dumps(ours, sort_keys=True) != json.dumps(theirs, sort_keys=True):  # text, as Python holds 1 == True
            raise FingerprintMismatch(f"codec.{name}", theirs, ours)


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
    return Header(fields["length"], shapes, tuple(fields["kept"]), fields["top_k"])


def _layout(header: Header, codec: Codec) -> dict[str, TensorSpec]:
    """Every tensor before its lossless stage."""
    rows = sum(shape.rows for shape in header.shapes)
    layout = {
        "position": TensorSpec(torch.int32, (rows,)),
        "text": TensorSpec(torch.uint8, (-(-rows // 8),)),
        "top_ids": TensorSpec(torch.int32, (header.top_k,)),
        "top_logprobs": TensorSpec(torch.float32, (header.top_k,)),
    }
    if header.kept:
        layout["kept"] = TensorSpec(torch.int32, (sum(header.kept),))
    for number, shape in enumerate(header.shapes):
        layout |= {f"{number}.{name}": tensor for name, tensor in codec.layout(shape).items()}
    return layout


def _check_entries(entries: Mapping[str, Any], layout: Mapping[str, TensorSpec], has_lossless: bool) -> None:
    """Names, types and sizes of the stored tensors against what the codec would store."""
    if set(entries) != set(layout):
        raise ValueError("tensors do not have the names that the header promises")
    for name, tensor in layout.items():
        dtype, shape = entries[name]["dtype"], tuple(entries[name]["shape"])
        size = prod(tensor.shape) * tensor.dtype.itemsize
        if not has_lossless:
            fits = dtype == DTYPE_NAMES[tensor.dtype] and shape == tensor.shape
        else:
            fits = dtype == "U8" and len(shape) == 1 and (shape[0] == size or is_shrunk(shape[0], size))
        if not fits:
            raise ValueError(f"tensor {name!r} is {dtype} {shape}, which cannot stand for {tensor}")


def _stored_tensors(payload: NDArray[np.uint8], entries: Mapping[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """Views of the bytes of every tensor. Together they must be the whole payload, none of it twice."""
    spans = {name: entry["data_offsets"] for name, entry in entries.items()}
    end = 0
    for start, stop in sorted((start, stop) for start, stop in spans.values()):
        if type(start) is not int or type(stop) is not int or start != end or stop < start:
            raise ValueError("the tensors do not lie one behind the other")
        end = stop
    if end != len(payload):
        raise ValueError(f"the tensors take {end} bytes, but there are {len(payload)}")
    return {name: payload[start:stop] for name, (start, stop) in spans.items()}


def _expand(stored: NDArray[np.uint8], entry: Mapping[str, Any], tensor: TensorSpec) -> Tensor:
    """A stored tensor as the codec made it."""
    if len(stored) != prod(entry["shape"]) * (1 if entry["dtype"] == "U8" else tensor.dtype.itemsize):
        raise ValueError(f"a tensor of {entry['dtype']} {entry['shape']} takes {len(stored)} bytes")
    return expand(stored, tensor.dtype, tensor.shape)


def _check_rows(header: Header, codec: Codec, tensors: Mapping[str, Tensor]) -> CheckedContainer:
    """All tensors as the prefix has them, but keys and values, which are still compressed."""
    rows = [shape.rows for shape in header.shapes]
    bits = np.unpackbits(tensors["text"].numpy(), count=sum(rows), bitorder="little")
    texts = torch.from_numpy(bits).bool().split(rows)
    for number, (shape, text) in enumerate(zip(header.shapes, texts, strict=True)):
        if int(text.sum()) != shape.rows - shape.images:
            raise ValueError(f"segment {number} has not as many text rows as its header says")
    kept = tensors["kept"].split(header.kept) if header.kept else ()
    return CheckedContainer(
        shapes=header.shapes,
        segments=tuple(
            {name: tensors[f"{number}.{name}"] for name in codec.layout(shape)}
            for number, shape in enumerate(header.shapes)
        ),
        positions=tuple(_ascending(differences, header.length) for differences in tensors["position"].split(rows)),
        texts=texts,
        frame=Prefix(
            length=header.length,
            segments=(),
            kept=tuple(_ascending(differences, MAX_NUMBER) for differences in kept),
            # Copies, since a prefix must not hold on to the container's bytes, whose memory is used again.
            top_ids=tensors["top_ids"].clone(),
            top_logprobs=tensors["top_logprobs"].clone(),
        ),
    )


def _restore(
    samples: Sequence[CheckedContainer], codec: Codec, device: torch.device, targets: Sequence[RowTarget]
) -> list[Prefix]:
    """The prefixes of samples of one kind, segment by segment: one is copied while the one before is restored."""
    segments = []
    for number, target in enumerate(targets):
        names = list(samples[0].segments[number])
        joined = move_joined([[sample.segments[number][name] for sample in samples] for name in names], device)
        shapes = [sample.shapes[number] for sample in samples]
        position = torch.cat([sample.positions[number] for sample in samples])
        text = torch.cat([sample.texts[number] for sample in samples])
        codec.restore(dict(zip(names, joined, strict=True)), shapes, position, text, target)
        segments.append(_split(target, shapes, *move_together([position, text], device)))
    return [
        replace(sample.frame, segments=own) for sample, own in zip(samples, zip(*segments, strict=True), strict=True)
    ]


def _split(target: RowTarget, shapes: Sequence[SegmentShape], position: Tensor, text: Tensor) -> list[Segment]:
    """The samples' segments, as views of a target."""
    rows = [shape.rows for shape in shapes]
    return [
        Segment(
            shape.first_layer,
            target.keys[:, start : start + shape.rows],
            target.values[:, start : start + shape.rows],
            own_position,
            own_text,
        )
        for shape, start, own_position, own_text in zip(
            shapes, target.starts, position.split(rows), text.split(rows), strict=True
        )
    ]


def _ascending(differences: Tensor, end: int) -> Tensor:
    """int32 numbers from 0 to below `end` from their differences."""
    numbers = differences.cumsum(0)
    if bool((differences[:1] < 0).any() or (differences[1:] <= 0).any() or (numbers[-1:] >= end).any()):
        raise ValueError("row numbers do not ascend within their range")
    return numbers.int()
