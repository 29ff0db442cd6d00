"""Hold this implementation against vectors that were made with the authors' code.

A vector is a safetensors file with a small Llama model's weights, a prompt's embeddings, and what the authors' code did
with them: saliency and kept indices per prune point, and the logits of each greedy step (tests/vectors/README.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from trio_ray.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of vector files")


def run(arguments: argparse.Namespace) -> int:
    """Check every `*.safetensors` of the folder; 1 on any mismatch or unreadable file."""
    from trio_ray.lab.conformance import BadVector, check_vector

    files = sorted(arguments.folder.glob("*.safetensors"))
    if not files:
        raise ConfigError("DIR", f"there is no *.safetensors in {arguments.folder}")
    failed = 0
    for path in files:
        try:
            outcome = check_vector(path)
        except BadVector as error:
            print(f"FAIL {path.stem}: {error}")
            failed += 1
        else:
            print(outcome)
            failed += not outcome.ok
    return 1 if failed else 0
