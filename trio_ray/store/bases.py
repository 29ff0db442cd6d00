"""The calibrated basis of a cache's codec: stored once in the cache, under its own hash."""

from __future__ import annotations

from trio_ray.errors import ObjectDamaged
from trio_ray.kv.container import checksum
from trio_ray.store.layout import basis_name
from trio_ray.store.objects import ObjectStore


def store_basis(store: ObjectStore, data: bytes) -> str:
    """Put a basis into a cache, unless it is there, and return its hash, by which the identity names it."""
    digest = checksum(data)
    store.create(basis_name(digest), data)
    return digest


def read_basis(store: ObjectStore, digest: str) -> bytes:
    """The basis of this hash.

    Raises:
        ObjectMissing: the cache has none of this hash.
        ObjectDamaged: its bytes are not those that were stored.
    """
    name = basis_name(digest)
    data = store.read(name)
    if checksum(data) != digest:
        raise ObjectDamaged(store.uri_of(name), "its bytes are not those that its name says; restore it from a copy")
    return data
