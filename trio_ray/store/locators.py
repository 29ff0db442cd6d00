"""Where each sample's bytes lie, by the hash of its key: 56 bytes a sample, which are read without the part's table.

Each part has a file of its locators; `key_index` merges those of many parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xxhash

from trio_ray.errors import ObjectDamaged
from trio_ray.store.objects import ObjectStore
from trio_ray.store.tables import MEMBER_KINDS, place_columns

LOCATOR = np.dtype(
    [
        ("high", "<u8"),
        ("low", "<u8"),
        ("commit", "<u4"),
        ("row", "<u4"),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("checksum", "V16"),
    ]
)
"""`high` and `low`: xxh3-128 of the key's UTF-8 bytes. `commit`: number of the part in the catalog, 0 in a part's own
file. `row`: of the part's table. `offset`, `length`, `checksum` (xxh3-128): the sample's member of the part's tar, all
0 where there is none.
"""


def key_hash(key: str) -> tuple[int, int]:
    """The two halves of a key's xxh3-128, as locators hold them."""
    number = xxhash.xxh3_128_intdigest(key.encode("utf-8", "surrogatepass"))
    return number >> 64, number & (1 << 64) - 1


def locators_of(rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """The locators of a part's rows: (rows,) LOCATOR, sorted by hash and row."""
    found = []
    for number, row in enumerate(rows):
        places = [[row[column] for column in place_columns(kind)[1:]] for kind in MEMBER_KINDS]
        offset, length, checksum = next((place for place in places if None not in place), (0, 0, "0" * 32))
        found.append((*key_hash(row["key"]), 0, number, offset, length, bytes.fromhex(checksum)))
    return sort_locators(np.array(found, LOCATOR))


def sort_locators(locators: np.ndarray) -> np.ndarray:
    """The same (n,) locators in the order of all files: by hash, part and row."""
    order = np.lexsort((locators["row"], locators["commit"], locators["low"], locators["high"]))
    return locators[order]


def _parse_locators(data: bytes, rows: int) -> np.ndarray:
    if len(data) != rows * LOCATOR.itemsize:
        raise ValueError(f"has {len(data)} bytes, and the locators of {rows} rows take {rows * LOCATOR.itemsize}")
    locators = np.frombuffer(data, LOCATOR)
    if not np.array_equal(np.sort(locators["row"]), np.arange(rows)):
        raise ValueError(f"does not have one locator for each of {rows} rows")
    return locators


def read_locators(store: ObjectStore, name: str, committed: str, rows: int) -> np.ndarray:
    """The locators of a part of so many rows, whose file was committed with this checksum.

    Raises:
        ObjectDamaged: it is not as it was committed.
        StoreError: it cannot be read.
    """
    data = store.read(name)
    if xxhash.xxh3_128_hexdigest(data) != committed:
        raise ObjectDamaged(store.uri_of(name), "its bytes are not those that were committed")
    try:
        return _parse_locators(data, rows)
    except ValueError as error:
        raise ObjectDamaged(store.uri_of(name), str(error)) from None


def matching(locators: np.ndarray, wanted: tuple[int, int]) -> np.ndarray:
    """Those of one key among locators that are sorted by hash."""
    high, low = (np.uint64(half) for half in wanted)
    first, beyond = (np.searchsorted(locators["high"], high, side) for side in ("left", "right"))
    same = locators[first:beyond]
    return same[same["low"] == low]


def digests(locators: np.ndarray) -> np.ndarray:
    """(n,) uint64: a hash of each locator. Their sums tell whether two sets of locators are the same, in any order."""
    words = np.ascontiguousarray(locators).view("<u8").reshape(len(locators), LOCATOR.itemsize // 8)
    mixed = np.zeros(len(locators), np.uint64)
    with np.errstate(over="ignore"):
        for column in range(words.shape[1]):
            mixed = (mixed ^ words[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
    return mixed
