"""What a training needs to go on: one safetensors object, visible only whole."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trio_ray.distill.training import Trainer
from trio_ray.errors import ConfigError, ObjectDamaged, ObjectMissing
from trio_ray.store.dataset import first_difference
from trio_ray.store.objects import ObjectStore

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_VERSION = 1
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(store: ObjectStore, trainer: Trainer, identity: dict[str, Any]) -> None:
    """Write weights and AdamW's moments, replacing the checkpoint before.

    Args:
        store: the job's output.
        trainer: between two steps.
        identity: the settings that a run must share to go on from it.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainer.parameters.items():
        tensors[f"weight/{name}"] = parameter.detach()
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = trainer.optimizer.state[parameter][moment]
    header = {"version": CHECKPOINT_VERSION, "step": trainer.step, "identity": identity}
    data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"trio_ray": json.dumps(header)})
    with store.writer(CHECKPOINT) as file:
        file.write(data)


def load_checkpoint(store: ObjectStore, trainer: Trainer, identity: dict[str, Any]) -> bool:
    """Restore weights, moments and step from the output's checkpoint; False if there is none.

    Raises:
        ConfigError: it was made with other settings; names the first that differs.
        ObjectDamaged: it is not as it was written.
    """
    try:
        data = store.read(CHECKPOINT)
    except ObjectMissing:
        return False
    uri = store.uri_of(CHECKPOINT)
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["trio_ray"])
        version, made, step = header["version"], header["identity"], int(header["step"])
        tensors = load(data)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ObjectDamaged(uri, f"is no checkpoint ({type(error).__name__}); remove it to begin anew") from None
    difference = first_difference(made, identity, "settings")
    if version != CHECKPOINT_VERSION or difference is not None:
        field, before, now = difference or ("version", version, CHECKPOINT_VERSION)
        raise ConfigError("output", f"{uri} was made with {field} = {before!r}, this run has {now!r}; use another")
    with torch.no_grad():
        for name, parameter in trainer.parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            state: dict[str, Tensor] = {moment: tensors[f"{moment}/{name}"].to(parameter) for moment in _MOMENTS}
            trainer.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **state}
    trainer.step = step
    return True
