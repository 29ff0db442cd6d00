"""The model of a lab command: the bundled one, or random weights in the shapes of a larger one."""

from __future__ import annotations

import argparse
from pathlib import Path

from trio_ray.commands._options import make_folder, whole
from trio_ray.config import BUNDLED_MODEL, JobConfig, load_config
from trio_ray.errors import ConfigError
from trio_ray.lab.prefill.settings import WORKLOADS


def check_shapes(name: str) -> None:
    """Check --shapes.

    Raises:
        ConfigError: there are no such shapes.
    """
    from trio_ray.model.shapes import SHAPES

    if name not in (*SHAPES, BUNDLED_MODEL):
        raise ConfigError("--shapes", f"{name!r} is none of {', '.join(SHAPES)}, {BUNDLED_MODEL}")


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Options of a command that measures jobs: the model, the corpus, and any setting of the job."""
    shapes = "model: bundled (default), or random weights in the shapes of vicuna-7b, mistral-7b, tiny"
    parser.add_argument("--shapes", default=BUNDLED_MODEL, metavar="NAME", help=shapes)
    parser.add_argument("--workload", default="pope", choices=WORKLOADS, help="images and prompts (default pope)")
    parser.add_argument("--per-shard", type=whole(1), default=512, metavar="N", help="samples a shard (default 512)")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings of the precompute job")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="any setting of the precompute job"
    )


def job_with_model(arguments: argparse.Namespace, inputs: str) -> JobConfig:
    """The settings of the job, whose model is written below --out unless it is the bundled one.

    Args:
        arguments: of `add_job_options`, with `output` and `out`; `check_shapes` has passed.
        inputs: stands for the input, which the command makes later.

    Raises:
        ConfigError: a setting is wrong, or --out cannot be made; no model was written.
    """
    from trio_ray.model.shapes import write_model

    model = Path(arguments.out).absolute() / "model"
    bundled = arguments.shapes == BUNDLED_MODEL
    values = {
        "model.name": BUNDLED_MODEL if bundled else str(model), "output": arguments.output, "input": inputs,
    }  # fmt: skip
    config = load_config(arguments.config, arguments.set, values)
    make_folder("--out", arguments.out)
    if not bundled:
        write_model(model, arguments.shapes)
    return config
