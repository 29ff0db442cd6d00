"""Fit a basis of the transform codec to a sample of the corpus that a job will process.

Runs the model over samples drawn evenly from the job's shards, learns which components their keys and values have and
how much an answer depends on each, and writes the basis. A part of the samples is held back: on them is measured how
much smaller the prefixes get and what that does to the first answer token. A job does the same by itself where it makes
a cache and its codec is left open (auto); a basis made here can serve many caches. The job then names the file:

  cache:
    codec: {name: transform, basis: basis.safetensors}

example:
  trio-ray calibrate --config job.yaml --samples 256 --out basis.safetensors
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trio_ray.commands.outputs import check_file
from trio_ray.config import load_config
from trio_ray.errors import ConfigError

if TYPE_CHECKING:
    from trio_ray.calibration.choice import Fitted, FittedCodec

SAMPLES = 256
MIN_SAMPLES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--config", metavar="FILE", help="the job's YAML file; the options below override it")
    parser.add_argument(
        "--input", metavar="URI", nargs="+", help="shards: paths or s3:// URIs, with globs and {a..b} ranges"
    )
    parser.add_argument("--model", metavar="NAME", help="'bundled', a folder, or a Hugging Face hub name")
    parser.add_argument(
        "--retention", type=float, metavar="R", help="image tokens kept, mean over all layers, 0 < R <= 1"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="any setting by its dotted name (repeatable)"
    )
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, metavar="N", help=f"calibration samples (default {SAMPLES})"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--divergence", type=float, metavar="D",
        help="nats by which an answer token's distribution may move, measured (default 0.003)",
    )  # fmt: skip
    size.add_argument("--step", type=float, metavar="S", help="one step for all components, as the report gives it")
    size.add_argument("--ratio", type=float, metavar="R", help="make prefixes R times smaller than in 16 bit")
    parser.add_argument("--rank", type=int, metavar="N", help="most components of a group of layers")
    parser.add_argument(
        "--group-layers", type=int, metavar="N", help="most layers transformed together (default: by their channels)"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the basis")


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, report, write."""
    from trio_ray.calibration.calibrate import DEFAULT_RANK
    from trio_ray.calibration.choice import HELD_OUT, fit
    from trio_ray.calibration.corpus import draw_samples, prefixes_of
    from trio_ray.model.loading import model_fingerprint, model_folder
    from trio_ray.model.replica import Replica

    _check(arguments)
    named = {"input": arguments.input, "model.name": arguments.model, "method.retention": arguments.retention}
    values = {name: value for name, value in named.items() if value is not None}
    config = load_config(arguments.config, arguments.set, values)
    if config.cache.level != "kv" or config.cache.scope != "prompt":
        raise ConfigError("cache", "a basis is calibrated for level kv and scope prompt")
    if config.model.matmul != "dtype":
        raise ConfigError("model.matmul", "calibration needs gradients: --set model.matmul=dtype; the basis fits both")
    started = time.monotonic()
    replica = Replica.load(config.model, config.prompt)
    samples = draw_samples(config, replica, arguments.samples + max(2, arguments.samples // (HELD_OUT - 1)))
    if len(samples) < MIN_SAMPLES:
        raise ConfigError("input", f"holds {len(samples)} samples that could be used; {MIN_SAMPLES} are needed")
    progress = _Progress(2 * len(samples))
    drawn = list(prefixes_of(samples, config, replica, progress.advance))
    fingerprint, notes = model_fingerprint(model_folder(config.model)), {"input": list(config.input)}
    rank = arguments.rank or DEFAULT_RANK
    fitted = fit(replica, drawn, fingerprint, notes, rank, arguments.group_layers, progress.advance)
    progress.close()
    chosen = _choose(arguments, fitted)
    print(f"step {chosen.step:.3g}, fitted to {fitted.calibration.samples} samples\n{chosen.measured}")
    try:
        Path(arguments.out).write_bytes(chosen.basis)
    except OSError as error:
        raise ConfigError("--out", f"{arguments.out} cannot be written: {error.strerror}") from None
    size, digest = len(chosen.basis), chosen.codec.settings.basis
    print(f"written: {arguments.out}, {size:,} bytes, {digest}; {time.monotonic() - started:.0f} s")
    return 0


def _choose(arguments: argparse.Namespace, fitted: Fitted) -> FittedCodec:
    """With the step that is given, or that gives the ratio or the divergence that is wanted."""
    from trio_ray.calibration.calibrate import smallest_step
    from trio_ray.calibration.choice import DEFAULT_DIVERGENCE

    if arguments.step:
        return fitted.at(arguments.step)
    if arguments.ratio:
        step = smallest_step(lambda step: fitted.ratio(step) >= arguments.ratio)
        if step is None:
            raise ConfigError("--ratio", f"{arguments.ratio} cannot be reached; headers and indices alone are larger")
        return fitted.at(step)
    wanted = arguments.divergence or DEFAULT_DIVERGENCE
    chosen = fitted.choose(wanted)
    if chosen is None:
        raise ConfigError("--divergence", f"{wanted} needs more components; give a higher --rank or more --samples")
    return chosen


def _check(arguments: argparse.Namespace) -> None:
    for name, least in {"samples": MIN_SAMPLES, "rank": 1, "group_layers": 1}.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')}", f"{value} must be at least {least}")
    for name in ("step", "ratio", "divergence"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name}", f"{value} must be above 0")
    check_file("--out", arguments.out)


class _Progress:
    """Samples done, on standard error."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def advance(self) -> None:
        self._done += 1
        print(f"\r{100 * self._done // self._total} % ", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        print(file=sys.stderr)
