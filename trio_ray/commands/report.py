"""Write one HTML page about a cache: what it is, how it was made, what was kept, what is in quarantine.

The page is one file that loads nothing from the network. Of a large cache whole shards are drawn until they have
--samples samples; sums are over all of it. Pictures need the input: --image-root says where images are that records
name by path, and --pictures 0 leaves them out.

example:
  trio-ray report s3://bucket/cache --out report.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from trio_ray.commands._options import add_input_options, add_s3_options, check_file, s3_config, whole
from trio_ray.commands._progress import shown_steps
from trio_ray.errors import ConfigError

THREADS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("cache", metavar="CACHE", help="a folder or s3://bucket/prefix")
    parser.add_argument("--out", metavar="FILE", default="report.html", help="the page (default report.html)")
    parser.add_argument(
        "--samples", type=whole(1), default=20_000, metavar="N", help="most samples whose rows are read (default 20000)"
    )
    parser.add_argument(
        "--pictures", type=whole(0), default=8, metavar="N", help="pictures in each part of the gallery (default 8)"
    )
    parser.add_argument("--verify", action="store_true", help="read every stored byte, and say what is damaged")
    parser.add_argument("--estimate", metavar="FILE", help="what `trio-ray estimate --json FILE` said before the job")
    add_input_options(parser)
    add_s3_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the page."""
    from trio_ray.cache.input_samples import Reread
    from trio_ray.cache.pruned_cache import PrunedCache
    from trio_ray.report.page import ReportSettings, cache_page
    from trio_ray.report.prediction import read_prediction
    from trio_ray.store.opening import open_store
    from trio_ray.store.verify import verify

    check_file("--out", arguments.out)
    s3 = s3_config(arguments)
    with shown_steps() as show:
        show("opening the cache")
        cache = PrunedCache(arguments.cache, s3)
        predicted = read_prediction(arguments.estimate) if arguments.estimate else None
        verified = None
        if arguments.verify:
            show("reading every byte")
            verified = verify(open_store(arguments.cache, s3), THREADS)
        settings = ReportSettings(
            samples=arguments.samples,
            pictures=arguments.pictures,
            how=Reread(s3, arguments.image_root, arguments.allow_any_path),
            predicted=predicted,
            verified=verified,
        )
        page = cache_page(cache, settings, show)
    _write(arguments.out, page)
    return 0


def _write(file: str, page: str) -> None:
    try:
        Path(file).write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError("--out", f"{file} cannot be written: {error.strerror}") from None
    print(f"written: {file}, {len(page.encode()):,} bytes")
