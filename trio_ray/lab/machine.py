"""The machine and the versions with which a measurement was made."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("trio-ray", "torch", "transformers", "triton", "flash-attn", "fa3-fwd", "pillow", "numpy")


def describe_run(device: torch.device) -> dict[str, Any]:
    """Date, machine and versions, which every record of a measurement begins with."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(device),
        "versions": describe_versions(),
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device, memory, processor."""
    machine: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"device": properties.name, "device_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return machine


def describe_versions() -> dict[str, str]:
    """Versions of the installed packages that matter for speed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
