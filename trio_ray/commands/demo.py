"""Render a small corpus, run the whole path on it, and show answers from the cache beside the true ones.

Run again, it finds its corpus and cache and has nothing left to compute. Images of many sizes with questions, some
samples broken on purpose, go through two replicas of the bundled model on this machine; the cache is verified, some
questions are answered from it, and pictures and a page (report.html) show which image tokens were kept.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from pathlib import Path

from trio_ray.commands import generate, inspect, precompute, report, verify
from trio_ray.commands._options import make_folder, whole
from trio_ray.errors import JobFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--folder", default="demo_output", metavar="DIR", help="where everything goes (default demo_output)"
    )
    parser.add_argument("--scenes", type=whole(1), default=120, metavar="N", help="images to render (default 120)")
    parser.add_argument(
        "--pictures", type=whole(0), default=3, metavar="N", help="overlay pictures to draw (default 3)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 if every step went as it should."""
    from trio_ray.lab.scenes.corpus import write_corpus

    folder = make_folder("--folder", arguments.folder)
    corpus, cache = folder / "corpus", folder / "cache"
    if not corpus.exists():
        print(f"== rendering {arguments.scenes} scenes with questions into {corpus}", flush=True)
        unfinished = folder / "corpus.unfinished"
        write_corpus(unfinished, scenes=arguments.scenes, samples_per_shard=100, broken=True, seed=0)
        unfinished.rename(corpus)
    options = ["--input", str(corpus / "*.tar"), "--output", str(cache), "--set", "replicas.max=2"]
    options += ["--set", "cache.codec=int4"]  # which needs no calibration first
    print("== precompute: two replicas of the bundled model; the broken samples go to quarantine", flush=True)
    status = _step(precompute, options)
    if status == JobFailed.exit_code:
        print("   the last shard is cut off on purpose: a job names such input and ends with exit code 4", flush=True)
    elif status:
        return status
    print("== verify: every stored byte against its checksum", flush=True)
    status = _step(verify, [str(cache)])
    if status:
        return status
    print("== answers from the pruned prefixes; no image is opened", flush=True)
    status = _step(generate, [str(cache), "--limit", "20"])
    if status:
        return status
    _draw(cache, folder, arguments.pictures)
    print("== report: one page about the cache", flush=True)
    status = _step(report, [str(cache), "--out", str(folder / "report.html"), "--verify"])
    if status:
        return status
    print(f"== everything lies in {folder}: corpus/, cache/, report.html, and the pictures kept-*.png")
    return 0


def _draw(cache: Path, folder: Path, pictures: int) -> None:
    from trio_ray.cache.pruned_cache import PrunedCache

    table = PrunedCache(str(cache)).table
    step = max(1, len(table) // max(1, pictures))
    for number in range(min(pictures, len(table))):
        row = table.slice(number * step, 1).to_pylist()[0]
        png = folder / f"kept-{number}.png"
        with contextlib.redirect_stdout(io.StringIO()):  # it would say the same in other words
            _step(inspect, [str(cache), row["key"], "--shard", row["shard"], "--png", str(png)])
        print(f"   drawn: {png}, the tokens kept for: {row['prompt'].splitlines()[-1]}")


def _step(command: object, options: list[str]) -> int:
    """Run another command as its own command line would."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)  # type: ignore[attr-defined]
    started = time.monotonic()
    status: int = command.run(parser.parse_args(options))  # type: ignore[attr-defined]
    print(f"   ({time.monotonic() - started:.1f} s)", flush=True)
    return status
