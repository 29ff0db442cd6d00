"""Train a student with fewer layers from cached teacher prefixes, on a cluster or on this machine.

ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/distill.py --config jobs/distill.yaml

Ray's job server sets RAY_ADDRESS, so the job joins the cluster it was submitted to; without one, Ray is started here.
The same command again goes on from the last checkpoint.
Exit codes: 0 done, 1 the store failed, 2 it cannot be run, 3 the teacher is not the cache's, 4 a worker failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trio_ray.config import load_section
from trio_ray.distill.config import DistillConfig
from trio_ray.errors import TrioRayError

if TYPE_CHECKING:
    from trio_ray.distill.training import StepReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code. Typed errors become one sentence on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; the options below override it")
    parser.add_argument("--cache", metavar="URI", help="the samples: an embeds cache, a folder or s3://bucket/prefix")
    parser.add_argument("--output", metavar="URI", help="where the student and its metrics go")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="any setting (repeatable)")
    chosen = parser.parse_args(arguments)
    named = {name: getattr(chosen, name) for name in ("cache", "output")}
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        given = {name: value for name, value in named.items() if value is not None}
        config = load_section(DistillConfig, chosen.config, chosen.set, given)
        from trio_ray.distill.job import run_distillation
        from trio_ray.distill.report import report

        print(report(run_distillation(config, _show)))
    except TrioRayError as error:
        print(f"distill: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _show(step: StepReport) -> None:
    print(f"step {step.step}: truth {step.truth:.4f}, teacher {step.teacher:.4f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
