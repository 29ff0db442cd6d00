"""Run jobs for some minutes while they are killed and S3 fails; no sample may be lost or stored twice.

Starts an S3 server, a proxy before it that breaks requests, and a Ray cluster of two nodes on this machine. Drivers,
replicas, storing processes and nodes are killed, a replica is stopped, the output's disk is filled up (a small tmpfs,
which takes root to mount); killed jobs are run again. Afterwards every byte is verified and every sample counted.
Exit code 4 if anything is lost, doubled or damaged, or happened too rarely to mean much.

example:
  trio-ray lab soak --minutes 30 --at-least 20 --out runs/soak
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from trio_ray.commands._options import make_folder, number, print_written, whole
from trio_ray.commands._progress import shown_steps
from trio_ray.errors import JobFailed
from trio_ray.lab.soak.settings import ACTS, Soak


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    default = Soak()
    parser.add_argument(
        "--minutes", type=number(above=0), default=default.minutes, metavar="M", help="of kills (default 30)"
    )
    parser.add_argument(
        "--most-minutes",
        type=number(above=0),
        metavar="M",
        help="of kills, while something has happened less than --at-least times (default 1.5 x --minutes)",
    )
    parser.add_argument(
        "--seed", type=whole(0), default=default.seed, metavar="N", help="of kills and faults (default 0)"
    )
    parser.add_argument(
        "--share",
        type=number(least=0, below=1),
        default=default.share,
        metavar="SHARE",
        help="of the requests that are faulty (default 0.4)",
    )
    parser.add_argument(
        "--interval",
        type=number(above=0),
        default=default.interval_s,
        metavar="S",
        help="seconds between kills (default 10)",
    )
    parser.add_argument(
        "--silence",
        type=number(above=0),
        default=default.silence_limit_s,
        metavar="S",
        help="replicas.silence_limit_s (default 30)",
    )
    parser.add_argument("--shards", type=whole(1), default=default.shards, metavar="N", help="of each job (default 24)")
    parser.add_argument(
        "--per-shard", type=whole(4), default=default.per_shard, metavar="N", help="samples a shard (default 40)"
    )
    parser.add_argument(
        "--without", nargs="+", default=[], choices=ACTS, metavar="WHAT", help=f"leave out, of: {', '.join(ACTS)}"
    )
    parser.add_argument(
        "--at-least",
        type=whole(0),
        default=default.at_least,
        metavar="N",
        help="times that each must have happened (default 1)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results and the jobs' logs")


def run(arguments: argparse.Namespace) -> int:
    """Run and report."""
    import torch

    from trio_ray.lab.machine import describe_run
    from trio_ray.lab.soak.report import study, what_is_wrong
    from trio_ray.lab.soak.soak import run_soak

    folder = make_folder("--out", arguments.out)
    soak = Soak(
        minutes=arguments.minutes,
        most_minutes=max(arguments.minutes, arguments.most_minutes or 1.5 * arguments.minutes),
        at_least=arguments.at_least,
        seed=arguments.seed,
        share=arguments.share,
        interval_s=arguments.interval,
        silence_limit_s=arguments.silence,
        shards=arguments.shards,
        per_shard=arguments.per_shard,
        acts=tuple(name for name in ACTS if name not in arguments.without),
    )
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    with shown_steps() as show:
        record = run_soak(soak, scratch.absolute(), show)
    result = study({**describe_run(torch.device("cpu")), **record})
    print(result.text)
    print_written(result.write(folder))
    if wrong := what_is_wrong(record, arguments.at_least):
        raise JobFailed("; ".join(wrong))
    return 0
