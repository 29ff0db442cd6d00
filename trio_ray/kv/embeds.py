"""Retained input embeddings, what engines that take prompt embeddings start from, and their stored form.

Stored is a plain safetensors file that any reader of the format can load: `embeds` (rows, width), `token_ids` (int32),
`position` (int32) and `text` (uint8, 1 for text rows). The `trio_ray` entry of its metadata is a JSON header
(schemas/embeds.schema.json).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from trio_ray.kv.header import DTYPES, ContainerError, FingerprintMismatch
from trio_ray.kv.serialise import serialise

EMBEDS_VERSION = 2


@dataclass(frozen=True, repr=False)
class Embeds:
    """One sample's retained input embeddings: the text rows, and the image rows kept at the first prune point.

    Attributes:
        length: rows of the prompt as it entered the decoder, as far as it is stored.
        rows: (n, d), in the model's dtype, in the prompt's order.
        token_ids: (n,) int32, each row's token id; image rows have the id that stands for an image.
        position: (n,) int32, ascending, each row's place in that prompt. An engine that numbers the rows from 0 closes
            them up, which is what the compact positions of a selector mean; for original positions pass these on.
        text: (n,) bool, True for text rows.
    """

    length: int
    rows: Tensor
    token_ids: Tensor
    position: Tensor
    text: Tensor

    def __repr__(self) -> str:
        rows, width = self.rows.shape
        dtype = str(self.rows.dtype).removeprefix("torch.")
        return f"Embeds({rows} rows of {self.length} before pruning, {width} wide; {dtype} on {self.rows.device})"


@dataclass(frozen=True)
class EmbedsBatch:
    """`Embeds` of B samples, one behind the other; `counts` are their rows."""

    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    rows: Tensor
    token_ids: Tensor
    position: Tensor
    text: Tensor

    def tensors(self) -> Iterator[Tensor]:
        """All of its tensors."""
        yield from (self.rows, self.token_ids, self.position, self.text)

    def copied(self, copy: Callable[[Tensor], Tensor]) -> EmbedsBatch:
        """The same with each tensor through `copy`."""
        return EmbedsBatch(self.lengths, self.counts, *map(copy, self.tensors()))

    def split(self) -> list[Embeds]:
        """The samples' embeddings; their tensors are views."""
        parts = (tensor.split(list(self.counts)) for tensor in self.tensors())
        return [Embeds(length, *tensors) for length, *tensors in zip(self.lengths, *parts, strict=True)]


def write_embeds(embeds: Embeds, key: str, fingerprint: str) -> memoryview:
    """Embeddings in host memory as bytes.

    Args:
        embeds: what to store.
        key: the sample's key, so that a swapped object is noticed.
        fingerprint: hash of the cache's identity.
    """
    header = {
        "version": EMBEDS_VERSION,
        "key": key,
        "fingerprint": fingerprint,
        "dtype": str(embeds.rows.dtype).removeprefix("torch."),
        "length": embeds.length,
        "rows": embeds.rows.shape[0],
        "width": embeds.rows.shape[1],
    }
    tensors = {
        "embeds": embeds.rows.contiguous(),
        "token_ids": embeds.token_ids.contiguous(),
        "position": embeds.position.contiguous(),
        "text": embeds.text.to(torch.uint8),
    }
    return serialise(tensors, {"trio_ray": json.dumps(header, sort_keys=True, separators=(",", ":"))})


def read_embeds(data: bytes, *, key: str | None = None, fingerprint: str | None = None) -> Embeds:
    """Bytes to embeddings on the CPU.

    Args:
        data: the whole file, its checksum already compared by the caller that knows it.
        key: the key that must be in the header, if given.
        fingerprint: the identity hash that must be in the header, if given.

    Raises:
        FingerprintMismatch: made under another identity.
        ContainerError: anything else that is not as written.
    """
    try:
        header = _read_header(data)
        tensors = load(data)
        _check(header, tensors, key, fingerprint)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise ContainerError(f"not as written: {type(error).__name__} {error}") from None
    return Embeds(
        header["length"], tensors["embeds"], tensors["token_ids"], tensors["position"], tensors["text"].bool()
    )


def _read_header(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= len(data) - 8:
        raise ValueError("it is no safetensors file, or cut off")
    header: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["trio_ray"])
    if header["version"] != EMBEDS_VERSION:
        raise ValueError(f"version {header['version']!r}; this program reads {EMBEDS_VERSION}")
    return header


def _check(header: dict[str, Any], tensors: dict[str, Tensor], key: str | None, fingerprint: str | None) -> None:
    if key is not None and header["key"] != key:
        raise ValueError(f"it holds the embeddings of {header['key']!r}")
    if fingerprint is not None and header["fingerprint"] != fingerprint:
        raise FingerprintMismatch("fingerprint", header["fingerprint"], fingerprint)
    rows, width, length = (_size(header[name]) for name in ("rows", "width", "length"))
    wanted = {
        "embeds": (DTYPES[header["dtype"]], (rows, width)),
        "token_ids": (torch.int32, (rows,)),
        "position": (torch.int32, (rows,)),
        "text": (torch.uint8, (rows,)),
    }
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != wanted:
        raise ValueError(f"tensors are {found}, the header promises {wanted}")
    position, text = tensors["position"], tensors["text"]
    if bool((text > 1).any() or (position.diff() <= 0).any() or (position < 0).any() or (position >= length).any()):
        raise ValueError("positions do not ascend within the prompt, or `text` is not 0 or 1")
    if bool((tensors["token_ids"] < 0).any()):
        raise ValueError("a token id is negative")


def _size(number: object) -> int:
    if type(number) is not int or number < 1:  # JSON's 30.0 and true would compare equal to whole numbers
        raise TypeError(f"{number!r} is no size")
    return number
