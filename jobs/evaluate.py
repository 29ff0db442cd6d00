"""Answer and score a question set from a cache, on a cluster or on this machine.

ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/evaluate.py --config jobs/evaluate.yaml

Ray's job server sets RAY_ADDRESS, so the job joins the cluster it was submitted to; without one, Ray is started here.
Exit codes: 0 done, 1 the store failed, 2 it cannot be run, 3 the model is not the cache's, 4 a question has no prefix.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from trio_ray.config import load_section
from trio_ray.errors import TrioRayError
from trio_ray.evaluate.config import EvaluateConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code. Typed errors become one sentence on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; the options below override it")
    parser.add_argument("--cache", metavar="URI", help="the cache: a folder or s3://bucket/prefix")
    parser.add_argument("--input", metavar="URI", nargs="+", help="question files; without any, all that the cache has")
    parser.add_argument("--output", metavar="URI", help="where answers and metrics go")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="any setting (repeatable)")
    chosen = parser.parse_args(arguments)
    named = {name: getattr(chosen, name) for name in ("cache", "input", "output")}
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        given = {name: value for name, value in named.items() if value is not None}
        config = load_section(EvaluateConfig, chosen.config, chosen.set, given)
        from trio_ray.evaluate.job import run_evaluation
        from trio_ray.evaluate.report import report

        print(report(run_evaluation(config, _show)))
    except TrioRayError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _show(done: int, questions: int) -> None:
    print(f"{done} of {questions} questions done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
