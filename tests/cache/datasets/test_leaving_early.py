"""A script that ends with caches half read ends as any other does."""

from __future__ import annotations

import subprocess
import sys

from tests.cache.caches import write_cache
from tests.seaweed import S3Server

SCRIPT = """
import sys
from trio_ray.cache.pruned_cache import PrunedCache

def keeps_the_globals_until_modules_are_cleared():
    return caches, streams

caches = [PrunedCache(sys.argv[1]) for _ in range(2)]
streams = [cache.stream(row for _ in range(1000) for row in cache.rows_at(range(47))) for cache in caches]
for stream in streams:
    next(stream)
"""


def test_an_interpreter_ends_with_two_caches_half_read(made: str) -> None:
    """Threads that read ahead must not be inside of a C++ library when it goes, nor keep it from going."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, made], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


S3_SCRIPT = """
import multiprocessing
import sys
from trio_ray.cache.pruned_cache import PrunedCache

def rows(cache):
    return len(list(cache.stream(cache.rows_at([0, 1]))))

caches = [PrunedCache(sys.argv[1]) for _ in range(2)]
streams = [cache.stream(row for _ in range(1000) for row in cache.rows_at(range(4))) for cache in caches]
for stream in streams:
    next(stream)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(rows, caches) == [2, 2]
"""


def test_so_does_one_with_two_caches_on_s3_and_forks(s3_environment: S3Server) -> None:
    """The threads of the S3 client are none of Python's, and a fork does not have them."""
    uri = s3_environment.fresh_uri()
    write_cache(uri, [[4], [4]], s3_environment.config)
    done = subprocess.run([sys.executable, "-c", S3_SCRIPT, uri], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
