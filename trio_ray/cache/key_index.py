"""Where a key may be, for millions of keys: hashes alone, 16 bytes a sample."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash


class KeyIndex:
    """From a key to the numbers of the samples that may have it; rows decide which of them do."""

    def __init__(self, keys: Iterable[str], numbers: np.ndarray) -> None:
        """`numbers` (n,) int64: those of the samples that `keys` are of."""
        hashes = np.fromiter((_hash(key) for key in keys), np.uint64, len(numbers))
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._numbers = numbers[order]

    def candidates(self, key: str) -> list[int]:
        """Numbers of all samples with this key, ascending, and now and then one whose key merely has the same hash."""
        wanted = np.uint64(_hash(key))
        first, beyond = np.searchsorted(self._hashes, wanted, "left"), np.searchsorted(self._hashes, wanted, "right")
        return sorted(self._numbers[first:beyond].tolist())


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))
