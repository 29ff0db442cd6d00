"""An index from keys to samples: locators of many parts in one object, of which a lookup reads one small range.

The object is an array of buckets of equal size. A key's bucket is given by the leading bits of its hash, so that
nothing has to be read to find it. A bucket holds its locators in order, empty slots behind them, and its own checksum.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from trio_ray.errors import ObjectDamaged
from trio_ray.store.layout import key_index_name
from trio_ray.store.locators import LOCATOR, sort_locators
from trio_ray.store.objects import ObjectStore

BUCKET_LOCATORS = 512
"""Upper bound on the mean number of locators in a bucket: 28 KB, which is little beside a prefix."""

MOST_OF_A_KEY = 16
"""Locators of one key that an index holds. A key of more shards than that is looked up within a shard."""

_CHECKSUM = 16
_EMPTY = np.uint32(0xFFFFFFFF)
"""The row of an empty slot."""

_MERGED_AT_ONCE = 1 << 19
"""Locators that a merge holds in memory at one time, from all its inputs."""


@dataclass(frozen=True, slots=True)
class IndexRef:
    """An index object, and what finding a bucket in it takes.

    Attributes:
        name: below the cache's root.
        first, beyond: numbers of the catalogued parts whose samples it holds, a half-open range.
        locators: how many it holds.
        bits: leading bits of a hash that are the number of its bucket.
        slots: locators that a bucket has room for.
        left_out: locators of keys that more than `MOST_OF_A_KEY` samples have, beyond that number.
    """

    name: str
    first: int
    beyond: int
    locators: int
    bits: int
    slots: int
    left_out: int

    @property
    def bucket_bytes(self) -> int:
        """Bytes of a bucket."""
        return self.slots * LOCATOR.itemsize + _CHECKSUM

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self.bucket_bytes << self.bits

    def bucket_of(self, high: int) -> int:
        """The bucket of a hash, by its higher half."""
        return high >> (64 - self.bits) if self.bits else 0


def write_index(store: ObjectStore, locators: np.ndarray, first: int, beyond: int) -> IndexRef:
    """Write an index of locators, (n,) in any order, of the catalogued parts `first .. beyond`.

    Raises:
        StoreError: it cannot be written.
    """
    return _write(store, first, beyond, len(locators), 0, lambda part, bits: _in_part(locators, part, bits))


def merge_indexes(store: ObjectStore, indexes: Sequence[IndexRef]) -> IndexRef:
    """Write one index that holds what several hold, which cover neighbouring ranges. Their objects stay.

    Raises:
        ObjectDamaged: one of them is not as it was written.
        StoreError: one cannot be read, or the new one not be written.
    """
    total = sum(index.locators for index in indexes)
    left_out = sum(index.left_out for index in indexes)

    def part(number: int, bits: int) -> np.ndarray:
        return np.concatenate([_read_part(store, index, number, bits) for index in indexes])

    return _write(store, indexes[0].first, indexes[-1].beyond, total, left_out, part)


def read_bucket(store: ObjectStore, index: IndexRef, bucket: int) -> np.ndarray:
    """The locators of a bucket, sorted by hash.

    Raises:
        ObjectDamaged: its bytes are not those that were written.
        StoreError: it cannot be read.
    """
    data = store.read_range(index.name, bucket * index.bucket_bytes, index.bucket_bytes)
    return _checked(store, index, bucket, memoryview(data))


def read_all(store: ObjectStore, index: IndexRef) -> Iterator[np.ndarray]:
    """All locators, some buckets at a time, in the order of the object. Raises as `read_bucket` does."""
    bits = _bits_of_parts(index.locators, index.bits)
    for number in range(1 << bits):
        yield _read_part(store, index, number, bits)


def _write(
    store: ObjectStore,
    first: int,
    beyond: int,
    total: int,
    left_out: int,
    part: Callable[[int, int], np.ndarray],
) -> IndexRef:
    """Write an index from its locators, of which `part(number, bits)` gives those whose hashes begin with these bits.

    Each part is asked for twice: the largest bucket must be known before the first one is written.
    """
    bits = max(0, (max(total, 1) - 1) // BUCKET_LOCATORS).bit_length()
    of_parts = _bits_of_parts(total, bits)
    slots = held = 0
    for number in range(1 << of_parts):
        kept = _without_excess(sort_locators(part(number, of_parts)))
        held += len(kept)
        slots = max(slots, int(_counts(kept, number, of_parts, bits).max()))
    left_out += total - held
    name = key_index_name(uuid.uuid4().hex)
    with store.writer(name) as writer:
        for number in range(1 << of_parts):
            kept = _without_excess(sort_locators(part(number, of_parts)))
            writer.write(_buckets(kept, number << (bits - of_parts), _counts(kept, number, of_parts, bits), slots))
    return IndexRef(name, first, beyond, held, bits, slots, left_out)


def _bits_of_parts(total: int, bits: int) -> int:
    """Leading bits of a hash that split so many locators into pieces which fit into memory; whole buckets each."""
    return min(bits, max(0, total // _MERGED_AT_ONCE).bit_length())


def _leading(locators: np.ndarray, bits: int) -> np.ndarray:
    """(n,) int64: the first `bits` bits of each hash."""
    if bits == 0:
        return np.zeros(len(locators), np.int64)
    return (locators["high"] >> np.uint64(64 - bits)).astype(np.int64)


def _in_part(locators: np.ndarray, part: int, bits: int) -> np.ndarray:
    return locators[_leading(locators, bits) == part] if bits else locators


def _counts(locators: np.ndarray, part: int, of_parts: int, bits: int) -> np.ndarray:
    """Locators of each bucket of a part."""
    buckets = 1 << (bits - of_parts)
    return np.bincount(_leading(locators, bits) - part * buckets, minlength=buckets)


def _without_excess(locators: np.ndarray) -> np.ndarray:
    """Sorted locators, of each key the first `MOST_OF_A_KEY`."""
    if not len(locators):
        return locators
    new = (locators["high"][1:] != locators["high"][:-1]) | (locators["low"][1:] != locators["low"][:-1])
    starts = np.concatenate([[0], np.flatnonzero(new) + 1])
    group = np.zeros(len(locators), np.int64)
    group[starts[1:]] = 1
    rank = np.arange(len(locators)) - starts[np.cumsum(group)]
    return locators[rank < MOST_OF_A_KEY]


def _buckets(locators: np.ndarray, first: int, counts: np.ndarray, slots: int) -> bytes:
    """The bytes of neighbouring buckets, with so many locators each, from bucket `first` on."""
    places = np.zeros((len(counts), slots), LOCATOR)
    places["row"] = _EMPTY
    beyond = np.cumsum(counts)
    bucket = np.repeat(np.arange(len(counts)), counts)
    places[bucket, np.arange(len(locators)) - (beyond - counts)[bucket]] = locators
    data = bytearray()
    for number, row in enumerate(places):
        body = row.tobytes()
        data += body + _checksum(first + number, body)
    return bytes(data)


def _checksum(bucket: int, body: bytes | memoryview) -> bytes:
    """Of a bucket, its number included: one that lies in another's place is damage, too."""
    digest = xxhash.xxh3_128(bucket.to_bytes(8, "little"))
    digest.update(body)
    return digest.digest()


def _checked(store: ObjectStore, index: IndexRef, bucket: int, data: memoryview) -> np.ndarray:
    body, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
    if _checksum(bucket, body) != bytes(checksum):
        raise ObjectDamaged(
            store.uri_of(index.name), f"bucket {bucket} is not as it was written; `trio-ray verify` says what to do"
        )
    places = np.frombuffer(body, LOCATOR)
    return places[places["row"] != _EMPTY]


def _read_part(store: ObjectStore, index: IndexRef, part: int, bits: int) -> np.ndarray:
    """The locators of an index whose hashes begin with these bits."""
    if index.bits >= bits:
        count = 1 << (index.bits - bits)
        first = part * count
    else:
        count, first = 1, part >> (bits - index.bits)
    size = index.bucket_bytes
    data = memoryview(store.read_range(index.name, first * size, count * size))
    found = [_checked(store, index, first + n, data[n * size : (n + 1) * size]) for n in range(count)]
    return _in_part(np.concatenate(found), part, bits)
