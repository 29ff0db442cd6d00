"""Writing a safetensors file out of tensors in host memory, fit for a process whose other threads drive a GPU.

`safetensors.torch.save` makes the same file, but copies the tensors twice and keeps Python's lock all the while: with
some megabytes for each sample that halved a job's rate. Here the bytes are copied once, and by numpy, which lets go of
the lock.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint8: "U8",
}
"""What safetensors calls the types that are stored here."""

ALIGNMENT = 8


Kind = tuple[str, torch.dtype, int]
"""Name, type and number of dimensions of a tensor."""


def stored_order(dtypes: Mapping[str, torch.dtype]) -> list[str]:
    """The names of tensors in the order that `serialise` stores them in."""
    return sorted(dtypes, key=lambda name: (-dtypes[name].itemsize, name))


@functools.lru_cache(256)
def entries_template(kinds: tuple[Kind, ...]) -> str:
    """What the header says behind its metadata of tensors in the order that they are stored in, with `%d` for each
    number: the shape of each, and where its bytes begin and end.
    """
    texts = []
    for name, dtype, dimensions in kinds:
        quoted, shape = json.dumps(name).replace("%", "%%"), ",".join(["%d"] * dimensions)
        texts.append(f',{quoted}:{{"dtype":"{DTYPE_NAMES[dtype]}","shape":[{shape}],"data_offsets":[%d,%d]}}')
    return "".join(texts) + "}"


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> memoryview:
    """A safetensors file (https://github.com/huggingface/safetensors#format).

    The same bytes for the same arguments: wide elements come first, so that each tensor is aligned, and then the order
    is that of the names.

    Args:
        tensors: contiguous, in host memory, of the types in `DTYPE_NAMES`.
        metadata: strings that go into the header.
    """
    order = stored_order({name: tensor.dtype for name, tensor in tensors.items()})
    numbers: list[int] = []
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        numbers += [*tensors[name].shape, start, end]
    kinds = tuple((name, tensors[name].dtype, tensors[name].ndim) for name in order)
    entries = entries_template(kinds) % tuple(numbers)
    header = f'{{"__metadata__":{json.dumps(dict(metadata), separators=(",", ":"))}{entries}'.encode()
    header += b" " * (-len(header) % ALIGNMENT)
    pieces = [np.frombuffer(len(header).to_bytes(8, "little") + header, np.uint8)]
    pieces += [tensors[name].reshape(-1).view(torch.uint8).numpy() for name in order]
    return np.concatenate(pieces).data
