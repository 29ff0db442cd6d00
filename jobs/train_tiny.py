"""Train the bundled model, or another recipe, on one GPU, turn a checkpoint into a Hugging Face folder, measure it.

python -m jobs.train_tiny train --out runs/tiny --minutes 9
python -m jobs.train_tiny train --out runs/tiny --resume runs/tiny/checkpoint --minutes 9
python -m jobs.train_tiny train --recipe second --out runs/second --batch 192 --minutes 8.5 --fit
python -m jobs.train_tiny export --checkpoint runs/tiny/checkpoint --out trio_ray/bundled/tiny
python -m jobs.train_tiny evaluate --model trio_ray/bundled/tiny --questions 3000 --out accuracy.json
python -m jobs.train_tiny plot --curves runs/tiny/curves.jsonl --out curves.png
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from jobs.tiny.architecture import RECIPES
from jobs.tiny.evaluation import evaluate
from jobs.tiny.export import export
from jobs.tiny.plot import plot_curves
from jobs.tiny.training import Training, TrainingConfig
from trio_ray.lab.scenes import FAMILIES


def main() -> None:
    """Run the chosen command."""
    arguments = _parser().parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.command == "train":
        names = [field.name for field in dataclasses.fields(TrainingConfig)]
        config = TrainingConfig(**{name: getattr(arguments, name) for name in names})
        Training(config, arguments.out, device, arguments.resume).run(60 * arguments.minutes, fit=arguments.fit)
    elif arguments.command == "export":
        export(arguments.checkpoint, arguments.out)
    elif arguments.command == "evaluate":
        report = evaluate(
            arguments.model,
            FAMILIES[arguments.family],
            arguments.questions,
            device,
            base_view_only=arguments.base_view_only,
        )
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(report))
    else:
        plot_curves(arguments.curves, arguments.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train, or go on from a checkpoint")
    train.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the curves")
    train.add_argument("--resume", type=Path, help="checkpoint folder of an earlier run")
    train.add_argument("--minutes", type=float, default=1e9, help="stop and write a checkpoint after this long")
    train.add_argument("--fit", action="store_true", help="shorten the schedule so that it ends within --minutes")
    for field in dataclasses.fields(TrainingConfig):
        choices = list(RECIPES) if field.name == "recipe" else None
        option = f"--{field.name.replace('_', '-')}"
        train.add_argument(option, type=type(field.default), default=field.default, choices=choices)
    to_folder = commands.add_parser("export", help="write a checkpoint as a Hugging Face folder")
    to_folder.add_argument("--checkpoint", type=Path, required=True)
    to_folder.add_argument("--out", type=Path, required=True)
    measure = commands.add_parser("evaluate", help="accuracy on test scenes, by generate()")
    measure.add_argument("--model", type=Path, required=True)
    measure.add_argument("--family", choices=FAMILIES, default="shapes", help="the scenes that it was trained on")
    measure.add_argument("--questions", type=int, default=3000)
    measure.add_argument("--base-view-only", action="store_true", help="blank the tiles: what does the base view show?")
    measure.add_argument("--out", type=Path, required=True, help="JSON file")
    curves = commands.add_parser("plot", help="draw the curves of a training")
    curves.add_argument("--curves", type=Path, required=True)
    curves.add_argument("--out", type=Path, required=True, help="PNG file")
    return parser


if __name__ == "__main__":
    main()
