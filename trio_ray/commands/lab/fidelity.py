"""Ask how faithful the layer-local score is to the whole model, in three studies on rendered scenes.

(a) the divergence of the next-token distribution by prune depth, one prune point at a time; (b) the rank agreement of
the layer-local saliency with the gradient of the true output; (c) fine-detail questions apart from coarse ones. Prints
the tables; with --out writes fidelity.json, fidelity.md and fidelity.png there.
"""

from __future__ import annotations

import argparse
import time

from trio_ray.commands._options import SHARE, make_folder, print_written, whole
from trio_ray.commands._progress import shown_count
from trio_ray.config import BUNDLED_MODEL, ModelConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--questions", type=whole(1), default=100, metavar="N", help="held-out questions (default 100)")
    parser.add_argument(
        "--share", type=SHARE, default=0.111, metavar="R", help="tokens kept by the single prune of (a)"
    )
    parser.add_argument(
        "--retention", type=SHARE, default=0.111, metavar="R", help="retention of (c), mean over layers"
    )
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="first test scene (default 0)")
    parser.add_argument(
        "--batch", type=whole(1), default=32, metavar="N", help="questions packed together (default 32)"
    )
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="NAME", help="default: the bundled model")
    parser.add_argument("--out", metavar="DIR", help="folder for JSON, tables and plot")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from trio_ray.lab.accuracy.questions import held_out_questions
    from trio_ray.lab.fidelity.study import measure_fidelity
    from trio_ray.model.replica import Replica

    folder = make_folder("--out", arguments.out) if arguments.out else None
    started = time.monotonic()
    questions = held_out_questions(arguments.questions, first_seed=arguments.first_seed)
    replica = Replica.load(ModelConfig(name=arguments.model, dtype="float32"))
    with shown_count("questions", len(questions)) as show:
        found = measure_fidelity(replica, questions, arguments.retention, arguments.share, arguments.batch, show)
    print(found.text)
    print(f"\n{len(questions)} questions, {replica.device}, {time.monotonic() - started:.0f} s")
    if folder:
        print_written(found.write(folder))
    return 0
