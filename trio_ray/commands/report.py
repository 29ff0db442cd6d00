"""Write one HTML page about a cache: what it is, how it was made, what was kept, what is in quarantine.

The page is one file that loads nothing from the network. Of a large cache whole shards are drawn until they have
--samples samples; sums are over all of it. Pictures need the input: --image-root says where images are that records
name by path, and --pictures 0 leaves them out. With a second cache of the same input files, made by another method or
codec, the page compares the two sample by sample.

examples:
  trio-ray report s3://bucket/cache --out report.html
  trio-ray report s3://bucket/cache s3://bucket/other --out compared.html
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from trio_ray.commands._options import (
    add_input_options,
    add_model_options,
    add_s3_options,
    check_file,
    model_config,
    s3_config,
    whole,
    write_file,
)
from trio_ray.commands._progress import shown_steps
from trio_ray.errors import ConfigError

if TYPE_CHECKING:
    from trio_ray.cache.input_samples import Reread

THREADS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("cache", metavar="CACHE", help="a folder or s3://bucket/prefix")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="a second cache, to compare the first one with")
    parser.add_argument("--out", metavar="FILE", default="report.html", help="the page (default report.html)")
    parser.add_argument(
        "--samples", type=whole(1), default=20_000, metavar="N", help="most samples whose rows are read (default 20000)"
    )
    parser.add_argument(
        "--pictures", type=whole(0), default=8, metavar="N", help="pictures in each part of the gallery (default 8)"
    )
    parser.add_argument("--verify", action="store_true", help="read every stored byte, and say what is damaged")
    parser.add_argument("--estimate", metavar="FILE", help="what `trio-ray estimate --json FILE` said before the job")
    parser.add_argument(
        "--divergence", type=whole(0), default=0, metavar="N",
        help="load the model, and measure on N samples how far the codec moves their answers (default 0: not)",
    )  # fmt: skip
    add_model_options(parser)
    add_input_options(parser)
    add_s3_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the page."""
    check_file("--out", arguments.out)
    if arguments.other:
        one_cache = {
            "--verify": arguments.verify,
            "--estimate": arguments.estimate,
            "--divergence": arguments.divergence,
        }
        for option, given in one_cache.items():
            if given:
                raise ConfigError(option, "is about one cache; leave it out, or the second cache")
    with shown_steps() as show:
        page = _comparison(arguments, show) if arguments.other else _report(arguments, show)
    content = page.encode()
    write_file("--out", arguments.out, content)
    print(f"written: {arguments.out}, {len(content):,} bytes")
    return 0


def _report(arguments: argparse.Namespace, show: Callable[[str], None]) -> str:
    from trio_ray.cache.pruned_cache import PrunedCache
    from trio_ray.report.divergence import measure_divergence
    from trio_ray.report.page import ReportSettings, cache_page
    from trio_ray.report.prediction import read_prediction
    from trio_ray.store.opening import open_store
    from trio_ray.store.verify import verify

    show("opening the cache")
    s3 = s3_config(arguments)
    cache = PrunedCache(arguments.cache, s3)
    predicted = read_prediction(arguments.estimate) if arguments.estimate else None
    verified = None
    if arguments.verify:
        show("reading every byte")
        verified = verify(open_store(arguments.cache, s3), THREADS)
    how, divergence = _reread(arguments), None
    if arguments.divergence:
        show("measuring the codec's divergence")
        divergence = measure_divergence(cache, model_config(arguments), how, arguments.divergence)
    settings = ReportSettings(arguments.samples, arguments.pictures, how, predicted, verified, divergence)
    return cache_page(cache, settings, show)


def _comparison(arguments: argparse.Namespace, show: Callable[[str], None]) -> str:
    from trio_ray.cache.pruned_cache import PrunedCache
    from trio_ray.report.compare import comparison_page

    show("opening the caches")
    s3 = s3_config(arguments)
    caches = (PrunedCache(arguments.cache, s3), PrunedCache(arguments.other, s3))
    return comparison_page(*caches, arguments.samples, arguments.pictures, _reread(arguments), show)


def _reread(arguments: argparse.Namespace) -> Reread:
    from trio_ray.cache.input_samples import Reread

    return Reread(s3_config(arguments), arguments.image_root, arguments.allow_any_path)
