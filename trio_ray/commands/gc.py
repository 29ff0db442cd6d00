"""Delete what dead or beaten attempts left in a cache: files that no record names, and unfinished uploads.

Only what is older than --older-than is touched, so that attempts that are still running keep their files.
"""

from __future__ import annotations

import argparse

from trio_ray.commands._options import add_s3_options, number, s3_config
from trio_ray.store.gc import collect_garbage
from trio_ray.store.opening import open_store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("cache", metavar="CACHE", help="a folder or s3://bucket/prefix")
    parser.add_argument(
        "--older-than",
        type=number(least=0),
        default=24.0,
        metavar="HOURS",
        help="age from which a file is garbage (default 24)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be deleted")
    add_s3_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """List and delete."""
    store = open_store(arguments.cache, s3_config(arguments))
    removed = collect_garbage(store, 3600 * arguments.older_than, arguments.dry_run)
    for info in removed:
        print(f"{info.name} ({info.size:,} bytes)")
    verb = "would be deleted" if arguments.dry_run else "deleted"
    print(f"{len(removed)} objects, {sum(info.size for info in removed):,} bytes {verb}")
    return 0
