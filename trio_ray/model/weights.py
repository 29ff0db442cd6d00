"""The weight files of a checkpoint: which of them are loaded, what their headers say, and a hash of their contents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from trio_ray.errors import ConfigError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
"""Tensor types of weights that are not quantised, as safetensors names them."""

_LFS_POINTER = b"version https://git-lfs"
_HASHING_THREADS = 4


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of a tensor. `dtype` is safetensors' name for it, such as "BF16"."""

    shape: tuple[int, ...]
    dtype: str


def refuse_lfs_pointer(path: Path) -> None:
    """Raise `ConfigError` if a file is only the pointer that Git leaves where Git LFS has not fetched the file."""
    try:
        with path.open("rb") as file:
            pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError as error:
        raise ConfigError("model.name", f"{path} cannot be read: {error.strerror}") from None
    if pointer:
        raise ConfigError(
            "model.name", f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in {path.parent}"
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that loading reads: one file, or those that the index names.

    Raises:
        ConfigError: there are none, or one that the index names is not there; names `model.name`.
    """
    if (folder / ADAPTER_FILE).exists():
        raise ConfigError(
            "model.name",
            f"{folder} holds an adapter ({ADAPTER_FILE}); merge it into its base model (in peft: merge_and_unload), "
            "save the merged model and give that folder",
        )
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return [_named_file(folder, name) for name in sorted(_index_files(folder / INDEX_FILE))]
    raise ConfigError("model.name", f"{folder} {_what_instead(folder)}")


def _what_instead(folder: Path) -> str:
    missing = f"holds neither {SINGLE_FILE} nor {INDEX_FILE}"
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"{missing}, only {', '.join(others[:3])}; rename a single file to {SINGLE_FILE}, or add the index"
    old = sorted(path.name for pattern in ("*.bin", "*.pth", "*.gguf") for path in folder.glob(pattern))
    if old:
        return f"{missing}, only {', '.join(old[:3])}; save the model with safetensors (save_pretrained does)"
    return f"{missing}: the weights are missing"


def _index_files(index: Path) -> set[str]:
    refuse_lfs_pointer(index)
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("model.name", f"{index} cannot be read as JSON: {_one_line(error)}") from None
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise ConfigError("model.name", f"{index} has no weight_map of tensor names to file names")
    return set(named.values())


def _named_file(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise ConfigError("model.name", f"{folder / INDEX_FILE} names {name!r}, which is not a file of the folder")
    if not (folder / name).is_file():
        raise ConfigError(
            "model.name", f"{folder / name} is missing, and {INDEX_FILE} names it; download the model again"
        )
    return folder / name


def read_headers(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Name -> shape and type of every tensor in these files; no tensor is read.

    Raises:
        ConfigError: a file is a Git LFS pointer, or is not whole; names `model.name`.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        refuse_lfs_pointer(path)
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - safe_open cannot be iterated
                part = file.get_slice(name)
                tensors[name] = StoredTensor(tuple(part.get_shape()), str(part.get_dtype()))
    return tensors


def hash_weights(files: Sequence[Path]) -> str:
    """xxh3-128 (hex) of all tensors by name, type, shape and bytes, however they are spread over files.

    Raises:
        ConfigError: a file cannot be read; names `model.name`.
    """
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        lines = sorted(line for of_file in pool.map(_tensor_digests, files) for line in of_file)
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())


def _tensor_digests(path: Path) -> list[str]:
    lines = []
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name).contiguous()
            data = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
            digest = xxhash.xxh3_128_hexdigest(data)
            lines.append(f"{json.dumps(name)} {tensor.dtype} {list(tensor.shape)} {digest}")
    return lines


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise ConfigError(
            "model.name",
            f"{path} ({size:,} bytes) is not a whole safetensors file ({_one_line(error)}); download it again",
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
