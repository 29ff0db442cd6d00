"""Measure what caches of many parts cost: opening, finding a key, inspect, joining questions, resuming a job.

Makes a cache of each size with real records, locators, tables and catalogs, but few real bytes of KV, and measures each
in a process of its own. Requests and bytes are counted at the interface of the object store. For S3 give an s3://
output and the usual AWS environment. What was made stays, and is measured as it is by the next run.

example:
  trio-ray lab scale --sizes 100 1000 10000 --output /scratch/scale --out runs/scale
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trio_ray.commands._options import add_s3_options, make_folder, print_written, s3_config, whole
from trio_ray.commands._progress import shown_steps

WHAT = (
    "open", "pickle", "row_cold", "row_many", "row_warm", "prefixes", "prefixes_warm", "inspect", "join", "resume",
    "append",
)  # fmt: skip


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
        "--what", nargs="+", default=WHAT, choices=WHAT, metavar="WHAT", help=f"of: {', '.join(WHAT)} (default all)"
    )
    parser.add_argument("--output", required=True, metavar="URI", help="where the caches are made")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    add_s3_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from trio_ray.lab.machine import describe_run
    from trio_ray.lab.scale.bench import ScaleBench, run_bench, study
    from trio_ray.model.decoder import default_device

    make_folder("--out", arguments.out)
    bench = ScaleBench(
        output=arguments.output,
        s3=s3_config(arguments),
        sizes=tuple(sorted(arguments.sizes)),
        rows=arguments.rows,
        prefix_bytes=arguments.prefix_kb * 1000,
        tables_up_to=arguments.tables_up_to,
        what=tuple(arguments.what),
    )
    about = {
        **describe_run(default_device()),
        "store": "S3" if arguments.output.startswith("s3://") else "folder",
    }
    folder = Path(arguments.out)

    def keep(record: Mapping[str, Any]) -> None:
        study({**about, **record}).write(folder)

    with shown_steps() as show:
        record = run_bench(bench, show, keep)
    result = study({**about, **record})
    print(result.text)
    print_written(result.write(folder))
    return 0
