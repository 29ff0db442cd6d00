"""`trio-ray`: one command a file in `commands/`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from trio_ray.errors import TrioRayError

COMMANDS = {
    "precompute": "run TRIO over shards of image-text data and store the pruned prefixes",
    "plan": "estimate a job before it runs, and say whether its cache is worth it",
    "calibrate": "fit a basis of the transform codec to a sample of a corpus",
    "verify": "read a whole cache and name everything that is not as it was written",
    "inspect": "say what is stored; draw which image tokens were kept",
    "generate": "answer from stored prefixes",
    "evaluate": "measure what selections cost in right answers, on rendered scenes",
    "bench": "measure prefill throughput: unpruned, authors' selection, random, ours",
    "bench-job": "measure whole jobs on 1, 2, 4 ... GPUs of this machine beside the bare replica",
    "agreement": "measure how far dtypes, attention kernels and batch sizes agree",
    "bench-codecs": "measure the codecs: GB/s on GPU and CPU, bytes a sample",
    "fidelity": "ask how faithful the layer-local score is to the whole model",
    "gc": "delete what dead or beaten attempts left in a cache",
    "demo": "render a small corpus, run the whole path on it and show the answers",
}
EXIT_CODES = """exit codes:
  0  done, all is well
  1  something was found or failed, as the message says
  2  the command or its configuration cannot be run; nothing was done
  3  the cache was made with other settings (the message names the field)
  4  the job ended, but not all of its input is in the cache"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. Typed errors become one sentence on standard error."""
    parser = argparse.ArgumentParser(
        prog="trio-ray",
        description="Pruned visual prefixes of LLaVA-NeXT, computed once on a Ray cluster and stored for good.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = import_module(f"trio_ray.commands.{name.replace('-', '_')}")
        command = subparsers.add_parser(
            name, help=summary, description=module.__doc__, epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        status: int = chosen.run(chosen)
        sys.stdout.flush()  # here, where it can still be told that nobody reads any more
        return status
    except TrioRayError as error:
        print(f"trio-ray: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "trio-ray: interrupted; what is committed stays, the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # `trio-ray inspect CACHE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes as it ends
        return 141
    except OSError as error:
        print(f"trio-ray: {_in_one_line(error)}", file=sys.stderr)
        return 1


def _in_one_line(error: OSError) -> str:
    if error.strerror is None:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


if __name__ == "__main__":
    sys.exit(main())
