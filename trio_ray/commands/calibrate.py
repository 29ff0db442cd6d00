"""Fit a basis of the transform codec to a sample of the corpus that a job will process.

Runs the model over samples drawn evenly from the job's shards, learns which components their keys and values have and
how much an answer depends on each, and writes the basis. A part of the samples is held back to say how much smaller the
prefixes get and what that does to the first answer token. The job then names the file:

  cache:
    codec: {name: transform, basis: basis.safetensors}

example:
  trio-ray calibrate --config job.yaml --samples 256 --out basis.safetensors
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trio_ray.config import load_config
from trio_ray.errors import ConfigError

if TYPE_CHECKING:
    from trio_ray.calibration.calibrate import Calibration

HELD_OUT = 4
"""One held-out sample for so many of the calibration set."""

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
        help="nats by which an answer token's distribution may be expected to move (default 0.002)",
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
    from trio_ray.calibration.calibrate import DEFAULT_RANK, calibrate
    from trio_ray.calibration.corpus import draw_samples, prefixes_of
    from trio_ray.calibration.report import measure_held_out, stored_ratio
    from trio_ray.kv.container import checksum
    from trio_ray.kv.spec import TransformSpec
    from trio_ray.kv.transform import Transform
    from trio_ray.kv.transform_basis import write_basis
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
    samples = draw_samples(config, replica, arguments.samples + max(2, arguments.samples // HELD_OUT))
    if len(samples) < MIN_SAMPLES:
        raise ConfigError("input", f"holds {len(samples)} samples that could be used; {MIN_SAMPLES} are needed")
    progress = _Progress(2 * len(samples))
    drawn = list(prefixes_of(samples, config, replica, progress.advance))
    held_out = max(2, len(drawn) // (HELD_OUT + 1))
    fitted, rest = drawn[:-held_out], drawn[-held_out:]
    calibration = calibrate(
        replica,
        [item.prefix for item in fitted],
        [[item.last_token] for item in fitted],
        model_fingerprint(model_folder(config.model)),
        {"samples": len(fitted), "input": list(config.input)},
        arguments.rank or DEFAULT_RANK,
        arguments.group_layers,
        progress.advance,
    )
    progress.close()

    def codec_of(step: float) -> tuple[Transform, bytes]:
        basis = calibration.basis(step)
        data = write_basis(basis)
        return Transform(TransformSpec(basis=checksum(data)), basis), data

    step = _choose_step(arguments, calibration, lambda step: stored_ratio(codec_of(step)[0], rest))
    codec, data = codec_of(step)
    print(
        f"step {step:.3g}, fitted to {len(fitted)} samples, "
        f"expected divergence {calibration.divergence(step):.2g} nats\n{measure_held_out(replica, codec, rest)}"
    )
    try:
        Path(arguments.out).write_bytes(data)
    except OSError as error:
        raise ConfigError("--out", f"{arguments.out} cannot be written: {error.strerror}") from None
    print(f"written: {arguments.out}, {len(data):,} bytes, {codec.settings.basis}; {time.monotonic() - started:.0f} s")
    return 0


def _choose_step(arguments: argparse.Namespace, calibration: Calibration, ratio_of: Callable[[float], float]) -> float:
    """The step that is given, or that gives the ratio or the divergence that is wanted."""
    from trio_ray.calibration.calibrate import DEFAULT_DIVERGENCE, largest_step, smallest_step

    if arguments.step:
        return arguments.step
    if arguments.ratio:
        step = smallest_step(lambda step: ratio_of(step) >= arguments.ratio)
        if step is None:
            raise ConfigError("--ratio", f"{arguments.ratio} cannot be reached; headers and indices alone are larger")
        return step
    wanted = arguments.divergence or DEFAULT_DIVERGENCE
    step = largest_step(lambda step: calibration.divergence(step) <= wanted)
    if step is None:
        raise ConfigError("--divergence", f"{wanted} needs more components; give a higher --rank or more --samples")
    return step


def _check(arguments: argparse.Namespace) -> None:
    for name, least in {"samples": MIN_SAMPLES, "rank": 1, "group_layers": 1}.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')}", f"{value} must be at least {least}")
    for name in ("step", "ratio", "divergence"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name}", f"{value} must be above 0")
    if not Path(arguments.out).resolve().parent.is_dir():
        raise ConfigError("--out", f"there is no folder {Path(arguments.out).resolve().parent}")


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
