"""Measure the page about a cache: how long `trio-ray report` takes, and how large the page is.

Makes a cache of rendered scenes, with rows as a job writes them but tokens kept by chance, and measures the report of
it and of any cache given beside it. What was made stays in --scratch, and is taken again by the next run.

example:
  trio-ray lab report demo_output/cache --samples 20000 --scratch /scratch/report --out runs/report
"""

from __future__ import annotations

import argparse
from pathlib import Path

from trio_ray.commands._options import make_folder, print_written, whole
from trio_ray.commands._progress import shown_steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("caches", metavar="CACHE", nargs="*", help="a cache that is there already; its folder")
    parser.add_argument(
        "--samples", type=whole(4), default=20_000, metavar="N", help="of the cache that is made (default 20000)"
    )
    parser.add_argument("--scratch", required=True, metavar="DIR", help="where it is made: 0.1 MB a sample")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results and the pages")


def run(arguments: argparse.Namespace) -> int:
    """Make, measure and report."""
    import torch

    from trio_ray.lab.machine import describe_run
    from trio_ray.lab.reports import make_cache, measure_report, study

    folder = make_folder("--out", arguments.out)
    scratch = make_folder("--scratch", arguments.scratch)
    pages = []
    with shown_steps() as show:
        caches = [*arguments.caches, make_cache(scratch, arguments.samples, show)]
        for number, cache in enumerate(caches):
            show(f"the report of {cache}")
            pages.append(measure_report(cache, Path(folder) / f"page-{number}.html"))
    result = study({**describe_run(torch.device("cpu")), "pages": pages})
    print(result.text)
    print_written(result.write(folder))
    return 0
