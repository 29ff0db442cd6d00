"""Measure how fast the codecs are on the GPU or CPU at hand, and how small they make prefixes of well-known shapes.

Keys and values are made up (trio_ray/estimate/made_up_states.py), so sizes are near those of real states and quality is
not measured here: `trio-ray evaluate --codecs` does that. `transform` gets a basis fitted to other made-up states,
so that containers are `ratio` times smaller than 16 bit (default 8). Prints a table; --out DIR gets codecs.json and
codecs.md.
"""

from __future__ import annotations

import argparse
import json

from trio_ray.commands.outputs import make_folder
from trio_ray.commands.timed_steps import timed_steps
from trio_ray.errors import ConfigError

CODECS = ("raw", "fp8", "int8", "int4", "int3", "int2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    shapes = ("vicuna-7b", "mistral-7b", "bundled")
    parser.add_argument("--shapes", default="vicuna-7b", choices=shapes, help="decoder (default vicuna-7b)")
    parser.add_argument(
        "--codecs", nargs="+", default=list(CODECS), metavar="CODEC",
        help="names, or mappings as in YAML: '{name: int2, sinks: 8}', '{name: transform, ratio: 16, rank: 1024, "
        f"group_layers: 2}}' (default {' '.join(CODECS)})",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="samples a batch on a GPU (default 16)")
    parser.add_argument("--rounds", type=int, default=5, metavar="R", help="timed rounds of each (default 5)")
    parser.add_argument("--out", metavar="DIR", help="folder for the results")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    import torch
    import yaml

    from trio_ray.estimate.made_up_states import GEOMETRIES
    from trio_ray.kv.codecs.registry import make_codec
    from trio_ray.kv.codecs.spec import full_spec
    from trio_ray.lab.codecs.made_up_bases import RatioFit, fit_transform
    from trio_ray.lab.codecs.speed import CodecBenchmark, markdown, records

    for name in ("samples", "rounds"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name}", f"{getattr(arguments, name)} must be at least 1")
    try:
        given = {text: yaml.safe_load(text) for text in arguments.codecs}
        fits = {text: RatioFit.parse(choice) for text, choice in given.items()}
        codecs = {text: make_codec(full_spec(choice)) for text, choice in given.items() if fits[text] is None}
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError("--codecs", str(error)) from None
    folder = make_folder("--out", arguments.out) if arguments.out else None
    show = timed_steps()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    benchmark = CodecBenchmark.make(GEOMETRIES[arguments.shapes], arguments.samples, device, arguments.rounds)
    speeds = []
    for name, fit in fits.items():
        show(name)
        if fit is None:
            speeds.append(benchmark.measure(name, codecs[name]))
        else:
            codec, basis = fit_transform(*fit, benchmark.geometry, benchmark.longest_and_shortest)
            show(f"{name}: basis fitted")
            speeds.append(benchmark.measure(name, codec, basis))
    where = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    heading = (
        f"{arguments.shapes}, {where}, batches of {len(benchmark.batch.lengths)}, medians of {arguments.rounds} "
        "rounds; rates in GB/s of 16-bit keys and values, zstd (one core) and frames (GPU) of coded bytes; made-up "
        "states" + ("; basis fitted to made-up states" if any(fits.values()) else "")
    )
    table = f"{heading}\n\n{markdown(speeds)}"
    print(table)
    if folder:
        results = {"shapes": arguments.shapes, "device": where, "rounds": arguments.rounds, "codecs": records(speeds)}
        (folder / "codecs.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (folder / "codecs.md").write_text(table + "\n", encoding="utf-8")
        print(f"written: {folder}/codecs.json, codecs.md")
    return 0
