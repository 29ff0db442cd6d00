"""Measure what caches of many parts cost: opening, finding a key, inspect, joining questions, resuming a job.

Makes a cache of each size with real records, locators, tables and catalogs, but few real bytes of KV, and measures each
in a process of its own. Requests and bytes are counted at the interface of the object store. For S3 give an s3://
output and the usual AWS environment. What was made stays, and is measured as it is by the next run.

`replicas` simulates jobs of a thousand replicas with bad hosts and deaths, whose driver and commits are real. `kills`
kills real writers while they write parts, segments and indexes, and reads the cache all the while. Both make caches of
their own below the output, which must not be there yet.

examples:
  trio-ray lab scale --sizes 100 1000 10000 --output /scratch/scale --out runs/scale
  trio-ray lab scale --what replicas kills --output /scratch/scale --out runs/scale
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trio_ray.commands._options import add_s3_options, make_folder, print_written, s3_config, whole
from trio_ray.commands._progress import shown_steps
from trio_ray.study import Study

WHAT = (
    "open", "pickle", "row_cold", "row_many", "row_warm", "prefixes", "prefixes_warm", "inspect", "join", "resume",
    "append",
)  # fmt: skip
FAULTS = ("replicas", "kills")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--sizes", nargs="+", type=whole(1), default=[100, 1000, 10000], metavar="N",
        help="parts of each cache (default 100 1000 10000)",
    )  # fmt: skip
    parser.add_argument("--rows", type=whole(1), default=1000, metavar="N", help="samples a part (default 1000)")
    parser.add_argument(
        "--prefix-kb", type=whole(1), default=300, metavar="KB", help="bytes of a prefix (default 300 KB)"
    )
    parser.add_argument(
        "--tables-up-to", type=whole(0), default=10000, metavar="N",
        help="a cache of more parts than this has no tables, and is not asked for rows (default 10000)",
    )  # fmt: skip
    parser.add_argument(
        "--what", nargs="+", default=WHAT, choices=(*WHAT, *FAULTS), metavar="WHAT",
        help=f"of: {', '.join(WHAT)} (default all of these), {', '.join(FAULTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--replicas", type=whole(1), default=1000, metavar="N", help="replicas of a simulated job (default 1000)"
    )
    parser.add_argument("--kills", type=whole(1), default=300, metavar="N", help="lives of writers (default 300)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of replicas and kills (default 0)")
    parser.add_argument("--output", required=True, metavar="URI", help="where the caches are made")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    add_s3_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from trio_ray.lab.machine import describe_run
    from trio_ray.model.decoder import default_device

    make_folder("--out", arguments.out)
    about = {
        **describe_run(default_device()),
        "store": "S3" if arguments.output.startswith("s3://") else "folder",
    }
    measured = tuple(what for what in arguments.what if what in WHAT)
    steps: list[Callable[[Callable[[str], None]], Study]] = []
    if measured:
        steps.append(partial(_measure_caches, arguments, measured, about))
    if "replicas" in arguments.what:
        steps.append(partial(_simulate_replicas, arguments, about))
    if "kills" in arguments.what:
        steps.append(partial(_kill_writers, arguments, about))
    for step in steps:
        with shown_steps() as show:
            result = step(show)
        print(result.text)
        print_written(result.write(Path(arguments.out)))
    return 0


def _measure_caches(
    arguments: argparse.Namespace, what: tuple[str, ...], about: Mapping[str, Any], show: Callable[[str], None]
) -> Study:
    from trio_ray.lab.scale.bench import ScaleBench, run_bench, study

    bench = ScaleBench(
        output=arguments.output,
        s3=s3_config(arguments),
        sizes=tuple(sorted(arguments.sizes)),
        rows=arguments.rows,
        prefix_bytes=arguments.prefix_kb * 1000,
        tables_up_to=arguments.tables_up_to,
        what=what,
    )

    def keep(record: Mapping[str, Any]) -> None:
        study({**about, **record}).write(Path(arguments.out))

    return study({**about, **run_bench(bench, show, keep)})


def _simulate_replicas(arguments: argparse.Namespace, about: Mapping[str, Any], show: Callable[[str], None]) -> Study:
    from trio_ray.lab.scale.replicas import run_replicas, study, usual_loads

    jobs = []
    for number, load in enumerate(usual_loads(arguments.replicas)):
        show(f"{arguments.replicas:,} replicas: {load.name}")
        uri = f"{arguments.output.rstrip('/')}/replicas-{arguments.seed}-{number}"
        jobs.append(run_replicas(uri, s3_config(arguments), arguments.replicas, load, arguments.seed))
    return study({**about, "jobs": jobs})


def _kill_writers(arguments: argparse.Namespace, about: Mapping[str, Any], show: Callable[[str], None]) -> Study:
    from trio_ray.lab.scale.kills import run_kills, study

    show(f"{arguments.kills:,} lives of writers")
    uri = f"{arguments.output.rstrip('/')}/kills-{arguments.seed}"
    return study({**about, **run_kills(uri, s3_config(arguments), arguments.kills, arguments.seed)})
