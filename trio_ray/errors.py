"""Every error this package raises on purpose.

Each one names the thing it is about (a field, a URI, a key, an object) and says what to do, so that the one
sentence a person reads at night is enough to act on. `exit_code` is what the command line exits with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TrioRayError(Exception):
    """Base of all typed errors. They keep their sentence and their fields when they pass between processes."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        # By default the finished message would go into a constructor that makes one of other arguments, and fail.
        return _restored, (type(self), self.args, vars(self))


def _restored(kind: type[TrioRayError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> TrioRayError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(fields)
    return error


class ConfigError(TrioRayError):
    """The configuration cannot be run. `field` is the dotted path of the setting at fault."""

    exit_code = 2

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class ModelError(TrioRayError):
    """A model folder or architecture that the replica cannot serve."""

    exit_code = 2


class StoreError(TrioRayError):
    """An object store refused or failed. `uri` is the object or the root concerned."""

    def __init__(self, uri: str, message: str) -> None:
        super().__init__(f"{uri}: {message}")
        self.uri = uri


class ObjectMissing(StoreError):
    """The object does not exist."""


class ObjectTooLarge(StoreError):
    """The object has more bytes than the caller accepts; it was not read."""


class NotAFile(StoreError):
    """The path leads to something that is no regular file: a device, a pipe, a socket."""


class AccessRefused(StoreError):
    """Credentials are absent, wrong, or do not allow this."""

    exit_code = 2


class ObjectDamaged(StoreError):
    """The stored bytes are not the ones that were written (checksum, length or structure)."""


Difference = tuple[str, object, object]
"""A setting by its dotted name, its value in the cache, and its value here."""

_DIFFERENCES_SHOWN = 8


class IdentityMismatch(TrioRayError):
    """A cache was made with other settings than this run writes with, or than a reader reads it with.

    Args:
        uri: of the cache.
        differences: all of them, those that matter most to the user first.
        reading: whether the cache was to be read, not to be added to.
    """

    exit_code = 3

    def __init__(self, uri: str, differences: Sequence[Difference], reading: bool = False) -> None:
        who = "what reads it" if reading else "this run"
        shown = "; ".join(
            f"{field} = {_short(stored)}, but {who} has {_short(wanted)}"
            for field, stored, wanted in differences[:_DIFFERENCES_SHOWN]
        )
        more = len(differences) - _DIFFERENCES_SHOWN
        cure = (
            "give the model that made it, in the same arithmetic"
            if reading
            else "use another output, or the settings that the cache was made with"
        )
        super().__init__(f"{uri}: made with {shown}{f'; and {more} more' if more > 0 else ''}; {cure}")
        self.uri = uri
        self.differences = tuple(differences)

    @property
    def field(self) -> str:
        """The first setting that differs."""
        return self.differences[0][0]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:60]} ... ({len(text)} characters)"


class PrefixError(TrioRayError):
    """A stored prefix cannot be used. `key` is the sample's key, `uri` the object it was read from."""

    def __init__(self, key: str, uri: str, message: str) -> None:
        super().__init__(f"prefix {key!r} in {uri}: {message}")
        self.key = key
        self.uri = uri


class JobFailed(TrioRayError):
    """The job ended, but not all of its input is in the cache; the message names what is not."""

    exit_code = 4
