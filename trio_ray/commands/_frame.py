"""How a command ends: its exit code, and one sentence on standard error for whatever stopped it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from trio_ray.errors import TrioRayError

EXIT_CODES = """exit codes:
  0    done, all is well
  1    something was found or failed, as the message says
  2    the command or its configuration cannot be run; nothing was done
  3    the cache was made with other settings (the message names the field)
  4    the job ended, but not all of its input is in the cache
  130  interrupted by Ctrl-C; the same command goes on from what is committed
  141  the reader of the output went away, as in `trio-ray inspect CACHE | head`
  143  ended by SIGTERM, as by `ray job stop`; otherwise as 130"""


def run_in_frame(run: Callable[[], int]) -> int:
    """Run a command, or a job; returns its exit code. Every error that a person can cause becomes one sentence."""
    terminated = threading.Event()
    try:
        with _sigterm_interrupts(terminated):
            status = run()
            sys.stdout.flush()  # here, where it can still be told that nobody reads any more
            return status
    except TrioRayError as error:
        return _ended(str(error), error.exit_code)
    except KeyboardInterrupt:
        what, code = ("ended by SIGTERM", 143) if terminated.is_set() else ("interrupted", 130)
        return _ended(f"{what}; what is committed stays, the same command goes on from there", code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes as it ends
        return 141
    except OSError as error:
        return _ended(_in_one_line(error), 1)
    except Exception as error:
        if not _is_ray_error(error):
            raise
        from trio_ray.cluster.session import in_one_line

        return _ended(f"Ray failed: {in_one_line(error)}", 1)


def _ended(sentence: str, code: int) -> int:
    print(f"trio-ray: {sentence}", file=sys.stderr)
    return code


@contextmanager
def _sigterm_interrupts(terminated: threading.Event) -> Iterator[None]:
    """Until the end, SIGTERM sets `terminated` and interrupts the main thread; another thread cannot change that.

    The event tells, because Ray raises a `KeyboardInterrupt` of its own for whatever a handler raises while it waits.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        terminated.set()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_ray_error(error: Exception) -> bool:
    """Without importing Ray, which most commands do not need."""
    ray = sys.modules.get("ray")
    return ray is not None and isinstance(error, ray.exceptions.RayError)


def _in_one_line(error: OSError) -> str:
    if error.strerror is None:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
