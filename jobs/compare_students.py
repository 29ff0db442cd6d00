"""Measure what a teacher is worth: the same student with and without it, on rendered scenes, three seeds each.

python -m jobs.compare_students --out runs/students

Renders the scenes, precomputes the caches, trains nine students and prints a table: two minutes on a GPU.
Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from trio_ray.commands.outputs import make_folder
from trio_ray.distillation.comparison import ComparisonConfig, compare, make_caches, table
from trio_ray.errors import TrioRayError


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the caches and students")
    fields = dataclasses.fields(ComparisonConfig)
    for field in fields:
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    chosen = parser.parse_args()
    config = ComparisonConfig(**{field.name: getattr(chosen, field.name) for field in fields})
    try:
        make_folder("--out", str(chosen.out))
        make_caches(config, chosen.out)
        print(table(compare(config, chosen.out, _show)))
    except TrioRayError as error:
        print(f"compare_students: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _show(name: str, seed: int, accuracy: float) -> None:
    print(f"{name}, seed {seed}: {100 * accuracy:.1f} %", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
