"""Measure decode steps from restored prefixes beside the limit that memory traffic sets.

Weights and prefixes are made up, in the shapes of a model: time depends on sizes alone. Prints a table; --out DIR gets
decode.json and decode.md.
"""

from __future__ import annotations

import argparse
import json

from trio_ray.commands._options import make_folder, whole
from trio_ray.commands._progress import shown_steps
from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    shapes = "model: bundled (default), or random weights in the shapes of vicuna-7b or mistral-7b"
    parser.add_argument("--shapes", default=BUNDLED_MODEL, metavar="NAME", help=shapes)
    sizes = "sequences that decode at a time (default 1 8 64 256)"
    parser.add_argument("--sequences", type=whole(1), nargs="+", default=[1, 8, 64, 256], metavar="N", help=sizes)
    parser.add_argument("--steps", type=whole(64), default=1000, metavar="N", help="steps of each (default 1000)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for results and model")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from trio_ray.estimate.made_up_states import GEOMETRIES
    from trio_ray.lab.decode.steps import markdown, measure_steps
    from trio_ray.model.replica import Replica
    from trio_ray.model.shapes import write_model

    if arguments.shapes not in GEOMETRIES:
        raise ConfigError("--shapes", f"{arguments.shapes!r} is none of {', '.join(GEOMETRIES)}")
    folder = make_folder("--out", arguments.out)
    name = arguments.shapes
    if name != BUNDLED_MODEL:
        name = str(write_model(folder / "model", name))
    with shown_steps() as show:
        show(f"load {arguments.shapes}")
        replica = Replica.load(ModelConfig(name=name))
        record = measure_steps(replica, arguments.shapes, arguments.sequences, arguments.steps, show)
    table = markdown(record)
    (folder / "decode.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "decode.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0
