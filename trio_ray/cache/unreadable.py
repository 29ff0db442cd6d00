"""A sample whose stored bytes are gone or are not those that were written: the errors that name key and object."""

from __future__ import annotations

from trio_ray.errors import ObjectDamaged, ObjectMissing, PrefixError, StoreError, TrioRayError


class PrefixMissing(ObjectMissing, PrefixError):
    """The object that held the prefix is not there."""

    def __init__(self, key: str, uri: str, message: str) -> None:
        TrioRayError.__init__(self, f"prefix {key!r} in {uri}: {message}")
        self.key, self.uri, self._message = key, uri, message

    def __reduce__(self) -> tuple[type[PrefixMissing], tuple[str, str, str]]:
        return type(self), (self.key, self.uri, self._message)


class PrefixDamaged(ObjectDamaged, PrefixError):
    """The stored bytes are not those that were written, or cannot be understood."""

    def __init__(self, key: str, uri: str, message: str) -> None:
        TrioRayError.__init__(self, f"prefix {key!r} in {uri}: {message}")
        self.key, self.uri, self._message = key, uri, message

    def __reduce__(self) -> tuple[type[PrefixDamaged], tuple[str, str, str]]:
        return type(self), (self.key, self.uri, self._message)


UnreadablePrefix = PrefixMissing | PrefixDamaged
"""What `on_bad` decides about. Any other error (no access, no network) is never skipped: it is not the sample's."""


def unreadable(key: str, error: ObjectMissing | ObjectDamaged) -> UnreadablePrefix:
    """The store's error about an object as one about the sample in it."""
    kind = PrefixMissing if isinstance(error, ObjectMissing) else PrefixDamaged
    return kind(key, error.uri, _without_uri(error))


def _without_uri(error: StoreError) -> str:
    return str(error).removeprefix(f"{error.uri}: ")
