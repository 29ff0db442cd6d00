"""Estimate a precompute job before it runs, and say whether its cache is worth it.

Reads a sample of the corpus and stores nothing. Speed comes from a GPU that you describe (--gpu-tflops, --efficiency),
or from this machine: --measure runs the job's own pipeline on the sample. A codec that is left open (auto) is then
calibrated on the sample, and otherwise assumed to make prefixes 8 times smaller. For every level and codec a table says
what a sample takes to store, to read and then to restore or compute (ms), how many times as many answers a second that
gives as pruning anew and as not pruning, and from which bandwidth and number of uses on it pays. Restoring is measured
with --measure, and otherwise goes by what an H200 does. A codec of poor quality is never recommended. What has no price
given has no cost.

examples:
  trio-ray estimate --config job.yaml --gpu-tflops 766 --efficiency 0.7 --replicas 8 --bandwidth 2 --gpu-price 2.5
  trio-ray estimate --config job.yaml --measure
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trio_ray.commands._options import SHARE, add_job_options, check_file, job_config, number, whole, with_pinned_model
from trio_ray.commands._progress import shown_steps
from trio_ray.errors import ConfigError

CODECS = ("raw", "int8", "int4", "int2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_job_options(parser)
    parser.add_argument("--samples", type=whole(1), default=200, metavar="N", help="samples to draw (default 200)")
    parser.add_argument(
        "--gpu-tflops", type=number(above=0), metavar="X", help="the GPU's peak in the job's arithmetic, TFLOP/s"
    )
    parser.add_argument(
        "--efficiency", type=SHARE, metavar="E", help="share of the peak that the job reaches, 0 < E <= 1"
    )
    parser.add_argument("--measure", action="store_true", help="measure this machine instead of a given GPU")
    parser.add_argument(
        "--seconds", type=number(above=0), default=5.0, metavar="S", help="least time to measure (default 5)"
    )
    parser.add_argument("--replicas", type=whole(1), metavar="R", help="replicas (default: the job's replicas.max)")
    parser.add_argument(
        "--bandwidth", type=number(above=0), metavar="GB/S", help="what one replica reads and writes the cache with"
    )
    parser.add_argument(
        "--codecs", nargs="+", default=list(CODECS), metavar="CODEC",
        help=f"to weigh: names, or mappings as in YAML (default {' '.join(CODECS)})",
    )  # fmt: skip
    parser.add_argument(
        "--answer-tokens",
        type=whole(1),
        default=16,
        metavar="N",
        help="length of the answers that it is read for (default 16)",
    )
    parser.add_argument(
        "--questions", type=whole(1), default=1, metavar="Q", help="questions that share a prefix (default 1)"
    )
    parser.add_argument("--gpu-price", type=number(least=0), metavar="$", help="of a replica's GPU, an hour")
    parser.add_argument("--storage-price", type=number(least=0), metavar="$", help="of 10^9 bytes, a month")
    parser.add_argument(
        "--months", type=number(least=0), default=1.0, metavar="M", help="that the cache is kept (default 1)"
    )
    parser.add_argument("--json", metavar="FILE", help="the estimate as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Estimate and report."""
    config = job_config(arguments)
    _check(arguments)
    config = with_pinned_model(config)
    codecs = _codecs(arguments.codecs)
    from trio_ray.estimate.choices import Use
    from trio_ray.estimate.estimate import EstimateSettings, make_estimate
    from trio_ray.estimate.prices import Prices
    from trio_ray.estimate.report import text

    settings = EstimateSettings(
        config=config,
        samples=arguments.samples,
        codecs=codecs,
        flop_per_s=None if arguments.measure else 1e12 * arguments.gpu_tflops * arguments.efficiency,
        seconds=arguments.seconds,
        replicas=arguments.replicas or config.replicas.max,
        bandwidth_gb_per_s=arguments.bandwidth,
        use=Use(arguments.answer_tokens, arguments.questions),
        prices=Prices(arguments.gpu_price, arguments.storage_price, arguments.months),
    )
    with shown_steps() as show:
        estimate = make_estimate(settings, show)
    print(text(estimate))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(asdict(estimate), indent=1) + "\n", encoding="utf-8")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` that names the option at fault."""
    given = [arguments.gpu_tflops, arguments.efficiency]
    if arguments.measure and any(value is not None for value in given):
        raise ConfigError("--measure", "measures the speed, so --gpu-tflops and --efficiency have no place beside it")
    if not arguments.measure and any(value is None for value in given):
        raise ConfigError("--gpu-tflops", "and --efficiency describe the GPU; give both, or --measure")
    if arguments.json:
        check_file("--json", arguments.json)


def _codecs(names: list[str]) -> dict[str, Any]:
    import yaml

    from trio_ray.kv.codecs.registry import full_spec

    try:
        codecs = {name: yaml.safe_load(name) for name in names}
        for choice in codecs.values():
            full_spec(choice)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError("--codecs", str(error)) from None
    return codecs
