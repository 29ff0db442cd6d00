"""Measure prefill throughput on the GPU or CPU at hand: unpruned, the authors' selection, random selection and ours.

The contestants take turns in one process; ratios are within the run. Weights are random (throughput does not depend on
them) unless --shapes bundled. Prints two tables and the packing budget to set; --out DIR gets prefill.json, prefill.md
and the model's folder, which a job takes as model.name.
"""

from __future__ import annotations

import argparse
import time

from trio_ray.commands._options import make_folder, number, print_written, whole
from trio_ray.commands._progress import shown_steps
from trio_ray.commands.lab._shapes import check_shapes
from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.lab.prefill.settings import CONTESTANTS, WORKLOADS, BenchSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    shapes = "model: bundled (default), or random weights in the shapes of vicuna-7b, mistral-7b, tiny"
    parser.add_argument("--shapes", default=BUNDLED_MODEL, metavar="NAME", help=shapes)
    workloads = "pope: COCO's sizes, 6 questions an image (default); web: a crawl's sizes, one text each"
    parser.add_argument("--workload", default="pope", choices=WORKLOADS, help=workloads)
    parser.add_argument("--samples", type=whole(1), default=96, metavar="N", help="samples a pass (default 96)")
    parser.add_argument("--rounds", type=whole(1), default=3, metavar="R", help="timed passes of each (default 3)")
    parser.add_argument(
        "--contestants",
        nargs="+",
        default=CONTESTANTS,
        choices=CONTESTANTS,
        metavar="NAME",
        help=f"of: {', '.join(CONTESTANTS)} (default all)",
    )
    parser.add_argument("--retention", type=number(above=0, below=1), default=0.111, metavar="R", help="default 0.111")
    parser.add_argument(
        "--full-depth", type=number(above=0, most=1), default=0.0, metavar="F",
        help="share of the layers that the pruned contestants run on all image tokens (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=whole(1), metavar="N", help="prompt rows a batch; by default the best is searched"
    )
    parser.add_argument(
        "--memory-limit",
        type=number(above=0),
        default=40.0,
        metavar="GB",
        help="of the device, for that search (default 40)",
    )
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--attention", default="auto", choices=("auto", "flash_attn", "fa3", "varlen", "sdpa"))
    matmul = "of our prefill; the unpruned one is always in --dtype"
    parser.add_argument("--matmul", default="dtype", choices=("dtype", "fp8"), help=matmul)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of weights and workload (default 0)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for results and model")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from trio_ray.lab.prefill.comparison import compare
    from trio_ray.lab.prefill.report import study
    from trio_ray.model.replica import Replica
    from trio_ray.model.shapes import write_model

    check_shapes(arguments.shapes)
    started = time.monotonic()
    folder = make_folder("--out", arguments.out)
    name = arguments.shapes
    if name != BUNDLED_MODEL:
        name = str(write_model(folder / "model", arguments.shapes, arguments.seed))
    model = ModelConfig(name=name, dtype=arguments.dtype, attention=arguments.attention, matmul=arguments.matmul)
    settings = BenchSettings(
        workload=arguments.workload,
        samples=arguments.samples,
        rounds=arguments.rounds,
        contestants=tuple(arguments.contestants),
        retention=arguments.retention,
        token_budget=arguments.budget,
        memory_limit=int(arguments.memory_limit * 1e9),
        seed=arguments.seed,
        full_depth=arguments.full_depth,
    )
    with shown_steps() as show:
        show(f"load {arguments.shapes}")
        compared = compare(Replica.load(model), settings, show)
    record = {"shapes": arguments.shapes, "matmul": arguments.matmul, **compared}
    record["seconds"] = time.monotonic() - started
    found = study(record)
    print(found.text)
    print(f"\nPacking budget for this model here: --set pipeline.token_budget={record['token_budget']}")
    print_written(found.write(folder))
    return 0
