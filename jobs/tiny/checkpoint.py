"""What a run needs to go on: in a few small files, no pickle.

Weights are kept in float16 and AdamW's second moments in bfloat16: 42 MB instead of 126. The first moments are left
out, since ten steps rebuild them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

MAX_FILE_BYTES = 14 << 20


def save_checkpoint(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, recipe: str) -> None:
    """Write the state after `step` steps of a recipe; `state.json`, written last, makes it valid."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").unlink(missing_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach().half()
        moment = optimizer.state.get(parameter, {}).get("exp_avg_sq")
        if moment is not None:
            tensors[f"moment/{name}"] = moment.bfloat16()
    files = _pack(tensors)
    for number, part in enumerate(files):
        save_file({name: tensors[name].cpu().contiguous() for name in part}, folder / f"part-{number}.safetensors")
    state = {"recipe": recipe, "step": step, "files": len(files)}
    (folder / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")


def load_checkpoint(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Restore the state into the network, and into the optimizer if one is given; returns the step."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors: dict[str, Tensor] = {}
    for number in range(state["files"]):
        tensors |= load_file(folder / f"part-{number}.safetensors")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(tensors[f"weight/{name}"])
            moment = tensors.get(f"moment/{name}")
            if optimizer is not None and moment is not None:
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(state["step"]), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": moment.to(parameter),
                }
    return int(state["step"])


def _pack(tensors: dict[str, Tensor]) -> list[list[str]]:
    """Names in files of at most MAX_FILE_BYTES."""
    files: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        length = tensor.numel() * tensor.element_size()
        if size + length > MAX_FILE_BYTES and files[-1]:
            files.append([])
            size = 0
        files[-1].append(name)
        size += length
    return files
