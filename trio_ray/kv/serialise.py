"""Writing a safetensors file out of tensors in host memory, fit for a process whose other threads drive a GPU.

`safetensors.torch.save` makes the same file, but copies the tensors twice and keeps Python's lock all the while: with
some megabytes for each sample that halved a job's rate. Here the bytes are copied once, and by numpy, which lets go of
the lock.
"""

from __future__ import annotations

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


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> memoryview:
    """A safetensors file (https://github.com/huggingface/safetensors#format).

    The same bytes for the same arguments: wide elements come first, so that each tensor is aligned, and then the order
    is that of the names.

    Args:
        tensors: contiguous, in host memory, of the types in `DTYPE_NAMES`.
        metadata: strings that go into the header.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    pieces = [np.frombuffer(len(header).to_bytes(8, "little") + header, np.uint8)]
    pieces += [tensors[name].reshape(-1).view(torch.uint8).numpy() for name in names]
    return np.concatenate(pieces).data
