"""Fit a basis of the transform codec to a sample of the corpus that a job will process.

Runs the model over samples drawn evenly from the job's shards, learns which components their keys and values have and
how much an answer depends on each, and writes the basis. A part of the samples is held back: on them is measured how
much smaller the prefixes get and what that does to the first answer token. A job does the same by itself where it makes
a cache and its codec is left open (auto); a basis made here can serve many caches. The job then names the file:

  cache:
    codec: {name: transform, basis: basis.safetensors}

With --schedule no basis is fitted. Instead a schedule is searched as a job with method.schedule: auto does it, and its
settings are written as YAML, to be put into the configuration of many jobs.

examples:
  trio-ray calibrate --config job.yaml --samples 256 --out basis.safetensors
  trio-ray calibrate --config job.yaml --samples 200 --schedule schedule.yaml
"""

from __future__ import annotations

import argparse
import time
from itertools import count
from typing import TYPE_CHECKING

from trio_ray.commands._options import (
    add_job_options,
    check_file,
    job_config,
    number,
    whole,
    with_pinned_model,
    write_file,
)
from trio_ray.commands._progress import shown_count
from trio_ray.errors import ConfigError

if TYPE_CHECKING:
    from trio_ray.calibration.choice import Fitted, FittedCodec

SAMPLES = 256
MIN_SAMPLES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_job_options(parser, output=False)
    parser.add_argument(
        "--samples",
        type=whole(MIN_SAMPLES),
        default=SAMPLES,
        metavar="N",
        help=f"calibration samples (default {SAMPLES})",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--divergence", type=number(above=0), metavar="D",
        help="nats by which an answer token's distribution may move, measured (default 0.003)",
    )  # fmt: skip
    size.add_argument(
        "--step", type=number(above=0), metavar="S", help="one step for all components, as the report gives it"
    )
    size.add_argument("--ratio", type=number(above=0), metavar="R", help="make prefixes R times smaller than in 16 bit")
    parser.add_argument("--rank", type=whole(1), metavar="N", help="most components of a group of layers")
    parser.add_argument(
        "--group-layers",
        type=whole(1),
        metavar="N",
        help="most layers transformed together (default: by their channels)",
    )
    made = parser.add_mutually_exclusive_group(required=True)
    made.add_argument("--out", metavar="FILE", help="the basis")
    made.add_argument("--schedule", metavar="FILE", help="search a schedule, and write its settings (YAML) here")
    parser.add_argument("--candidates", type=whole(1), metavar="N", help="schedules that --schedule tries (default 96)")


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, report, write."""
    if arguments.schedule:
        return _search(arguments)
    from trio_ray.calibration.calibrate import DEFAULT_RANK
    from trio_ray.calibration.choice import HELD_OUT, fit
    from trio_ray.calibration.corpus import draw_samples, prefixes_of
    from trio_ray.model.loading import model_fingerprint, model_folder
    from trio_ray.model.replica import Replica

    check_file("--out", arguments.out)
    config = with_pinned_model(job_config(arguments))
    if config.cache.level != "kv" or config.cache.scope != "prompt":
        raise ConfigError("cache", "a basis is calibrated for level kv and scope prompt")
    if config.model.matmul != "dtype":
        raise ConfigError("model.matmul", "calibration needs gradients: --set model.matmul=dtype; the basis fits both")
    started = time.monotonic()
    replica = Replica.load(config.model, config.prompt)
    samples = draw_samples(config, replica, arguments.samples + max(2, arguments.samples // (HELD_OUT - 1)))
    if len(samples) < MIN_SAMPLES:
        raise ConfigError("input", f"holds {len(samples)} samples that could be used; {MIN_SAMPLES} are needed")
    steps = count()
    fingerprint, notes = model_fingerprint(model_folder(config.model)), {"input": list(config.input)}
    rank = arguments.rank or DEFAULT_RANK
    with shown_count("steps", 2 * len(samples)) as show:

        def advance() -> None:
            show(next(steps) + 1)

        drawn = list(prefixes_of(samples, config, replica, advance))
        fitted = fit(replica, drawn, fingerprint, notes, rank, arguments.group_layers, advance)
    chosen = _choose(arguments, fitted)
    print(f"step {chosen.step:.3g}, fitted to {fitted.calibration.samples} samples\n{chosen.measured}")
    write_file("--out", arguments.out, chosen.basis)
    size, digest = len(chosen.basis), chosen.codec.settings.basis
    print(f"written: {arguments.out}, {size:,} bytes, {digest}; {time.monotonic() - started:.0f} s")
    return 0


def _search(arguments: argparse.Namespace) -> int:
    """Search a schedule, and write the settings that it comes to."""
    import yaml

    from trio_ray.calibration.corpus import draw_samples
    from trio_ray.calibration.schedule_search import CANDIDATES, search_schedule
    from trio_ray.model.replica import Replica

    check_file("--schedule", arguments.schedule)
    config = job_config(arguments)
    started, candidates = time.monotonic(), arguments.candidates or CANDIDATES
    replica = Replica.load(config.model, config.prompt)
    samples = draw_samples(config, replica, arguments.samples)
    with shown_count("schedules", candidates) as show:
        found = search_schedule(
            replica, samples, config.method,
            scope=config.cache.scope, batch_rows=config.pipeline.batch_rows, candidates=candidates, on_candidate=show,
        )  # fmt: skip
    print(found)
    settings = found.method.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    text = f"# {found}\n{yaml.safe_dump({'method': settings}, sort_keys=False)}"
    write_file("--schedule", arguments.schedule, text.encode())
    print(f"written: {arguments.schedule}; {time.monotonic() - started:.0f} s")
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
