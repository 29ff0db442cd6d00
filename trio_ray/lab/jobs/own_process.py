"""A measurement in a process of its own, which gives the GPU back when it ends: JSON in, JSON out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from trio_ray.errors import JobFailed


def in_own_process(module: str, what: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Run a module that reads an order from standard input and ends with a line that is its answer.

    Args:
        module: its dotted name.
        what: it is called in errors.
        order: for it.

    Raises:
        JobFailed: it failed; with its last words.
    """
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)
    if done.returncode:
        raise JobFailed(f"the {what} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
