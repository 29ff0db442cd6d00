"""What is written is a safetensors file, byte for byte the same for the same tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from trio_ray.kv.serialise import ALIGNMENT, DTYPE_NAMES, serialise


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "odd": torch.randint(0, 256, (3, 7), dtype=torch.uint8, generator=generator),
        "positions": torch.arange(5, dtype=torch.int32),
        "empty": torch.zeros(0, 4),
        **{f"{dtype}": torch.randn(2, 3, generator=generator).to(dtype) for dtype in DTYPE_NAMES},
    }


def test_the_librarys_own_reader_gives_every_tensor_and_the_metadata_back(tmp_path: Path) -> None:
    data = bytes(serialise(tensors(), {"trio_ray": '{"a": 1}', "other": "ü"}))
    read = load(data)
    assert set(read) == set(tensors())
    for name, tensor in tensors().items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    file = tmp_path / "file"
    file.write_bytes(data)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"trio_ray": '{"a": 1}', "other": "ü"}


def test_every_tensor_is_aligned_and_the_order_of_the_mapping_does_not_matter() -> None:
    data = bytes(serialise(tensors(), {}))
    assert data == bytes(serialise(dict(reversed(tensors().items())), {}))
    size = int.from_bytes(data[:8], "little")
    assert size % ALIGNMENT == 0
    entries = json.loads(data[8 : 8 + size])
    entries.pop("__metadata__")
    for name, entry in entries.items():
        assert entry["data_offsets"][0] % tensors()[name].element_size() == 0


def test_a_type_that_no_reader_would_expect_is_refused() -> None:
    with pytest.raises(KeyError, match="int64"):
        serialise({"x": torch.arange(3)}, {})
