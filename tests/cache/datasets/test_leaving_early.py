"""A script that ends with caches half read ends as any other does."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from trio_ray.cache.pruned_cache import PrunedCache

caches = [PrunedCache(sys.argv[1]) for _ in range(2)]
streams = [cache.stream(row for _ in range(1000) for row in cache.rows_at(range(47))) for cache in caches]
for stream in streams:
    next(stream)
"""


def test_an_interpreter_ends_with_two_caches_half_read(made: str) -> None:
    """Threads that read ahead must not be inside of a C++ library when it goes, nor keep it from going."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, made], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
