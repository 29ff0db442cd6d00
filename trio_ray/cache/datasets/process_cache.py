"""A cache that data loader workers share: each process has connections of its own."""

from __future__ import annotations

import os

from trio_ray.cache.pruned_cache import PrunedCache


class ProcessCache:
    """Holds a cache for datasets, which are forked or pickled into workers.

    Sockets must not be used from two processes, so the first use in another process opens new ones. The committed
    samples stay those that the cache was opened with: nothing is listed again, and all workers see the same.
    """

    def __init__(self, cache: PrunedCache) -> None:
        self._cache = cache
        self._process = os.getpid()

    def get(self) -> PrunedCache:
        """The cache, for this process."""
        if self._process != os.getpid():
            self._cache, self._process = self._cache.reopened(), os.getpid()
        return self._cache
