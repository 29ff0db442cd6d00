"""A tar, plain or gzip-compressed, that says when it is damaged.

The standard library's reader takes a header that is cut off or garbled for the end of the archive: half a
shard would be lost in silence. Here everything but a sound end raises `ShardDamaged`.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, Self, cast

from trio_ray.source.rejection import Rejected, ShardDamaged
from trio_ray.source.sample import Reason

_CHUNK = 1 << 20


class TarArchive:
    """The regular files of a tar, in order, with their contents read on request.

    Args:
        file: seekable; compressed if it starts with gzip's magic number, whatever it is called.

    Raises:
        ShardDamaged: from any method. SHARD_TRUNCATED if the file ends too early, SHARD_UNREADABLE for
        everything else.
    """

    def __init__(self, file: BinaryIO) -> None:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._file = _BoundedReads(gzip.GzipFile(fileobj=file) if compressed else file)
        with _damage_named():
            self._tar = tarfile.open(  # noqa: SIM115  (closing it would not close the caller's file)
                fileobj=cast(IO[bytes], self._file),
                mode="r:",
                tarinfo=_StrictHeader,
                encoding="utf-8",
                errors="backslashreplace",
            )

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Regular files in order; what is not read is passed by seeking. Ends at the end-of-archive mark.

        An archive without that mark is damaged even if it stops between two members: nothing else tells a
        complete one from one that was cut there.
        """
        while True:
            with _damage_named():
                member = self._tar.next()
            # Else the headers of a million members stay in memory.
            self._tar.members = []  # type: ignore[attr-defined]
            if member is None:
                return
            if member.isreg():
                yield member

    def read(self, member: tarfile.TarInfo, limit: int, too_large: Reason) -> bytes:
        """A member's content, also after later headers were read.

        Raises:
            Rejected: with reason `too_large`, when the header claims more than `limit` bytes.
        """
        if member.size > limit:
            raise Rejected(too_large, f"member {member.name!r} claims {member.size} bytes, the limit is {limit}")
        with _damage_named():
            content = self._tar.extractfile(member)
            assert content is not None, "a regular file has content"
            chunks = list(iter(lambda: content.read(_CHUNK), b""))
        return b"".join(chunks)

    def check_end(self) -> None:
        """Check that only padding follows the end-of-archive mark; call it when `members` has ended.

        A second archive behind the first, or zeros where members used to be, is damage and not an end.
        """
        with _damage_named():
            self._file.seek(self._tar.offset)
            while block := self._file.read(_CHUNK):
                if block.count(0) != len(block):
                    raise ShardDamaged(Reason.SHARD_UNREADABLE, "there is data behind the end-of-archive mark")


class _StrictHeader(tarfile.TarInfo):
    """A header that is either sound, or the end-of-archive mark, or damage."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        at = archive.offset
        try:
            header = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise ShardDamaged(Reason.SHARD_TRUNCATED, f"no end-of-archive mark at byte {at}") from None
        except tarfile.TruncatedHeaderError:  # type: ignore[attr-defined]
            raise ShardDamaged(Reason.SHARD_TRUNCATED, f"cut off in the header at byte {at}") from None
        except tarfile.HeaderError as error:
            raise ShardDamaged(Reason.SHARD_UNREADABLE, f"no tar header at byte {at}: {error}") from None
        except (ValueError, ArithmeticError, LookupError, TypeError, RecursionError) as error:
            # garbled extended headers surface as whatever the parser happened to trip over
            raise ShardDamaged(Reason.SHARD_UNREADABLE, f"garbled tar header at byte {at}: {error!r}") from None
        if header.size < 0 or archive.offset <= at:  # base-256 numbers may be negative: a tar that runs in circles
            raise ShardDamaged(Reason.SHARD_UNREADABLE, f"the tar header at byte {at} points backwards")
        return header


class _BoundedReads:
    """Refuses a single read that no sound archive needs, so that a garbled size is not allocated."""

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise ShardDamaged(Reason.SHARD_UNREADABLE, f"an extended tar header claims {size} bytes")
        return self._file.read(size)


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn what tarfile and gzip raise into `ShardDamaged`. A `StoreError` is neither and passes."""
    try:
        yield
    except tarfile.TarError as error:
        cut = "unexpected end" in str(error)
        raise ShardDamaged(
            Reason.SHARD_TRUNCATED if cut else Reason.SHARD_UNREADABLE, f"not readable as tar: {error}"
        ) from None
    except EOFError as error:
        raise ShardDamaged(Reason.SHARD_TRUNCATED, str(error)) from None
    except (OSError, zlib.error, ValueError, OverflowError) as error:
        raise ShardDamaged(Reason.SHARD_UNREADABLE, f"not readable as tar: {error}") from None
