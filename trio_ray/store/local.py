"""A folder as an object store: for one machine, or a file system that all nodes mount."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from trio_ray.errors import AccessRefused, NotAFile, ObjectDamaged, ObjectMissing, ObjectTooLarge, StoreError
from trio_ray.store.objects import (
    TEMPORARY_PREFIX,
    BytesLike,
    ObjectInfo,
    ObjectStore,
    ObjectWriter,
    UnfinishedWrite,
    check_name,
    check_version,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BUFFER = 1 << 20


@contextlib.contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn an `OSError` about `uri` into the typed error that says what to do."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ObjectMissing(uri, "no such file") from None
    except PermissionError as error:
        raise AccessRefused(uri, f"{error.strerror}; check the owner and mode of the file and its folders") from None
    except OSError as error:
        raise StoreError(uri, error.strerror or str(error)) from error


@contextlib.contextmanager
def _translated_write(uri: str) -> Iterator[None]:
    """The same for writing, where a missing folder means that it could not be made."""
    try:
        yield
    except PermissionError as error:
        raise AccessRefused(
            uri, f"cannot be written ({error.strerror}); check the owner and mode of the folder"
        ) from None
    except OSError as error:
        raise StoreError(uri, f"cannot be written: {error.strerror or error}") from error


def local_etag(status: os.stat_result) -> str:
    """The change marker of a local file: size and modification time in nanoseconds, in hex."""
    return f"{status.st_size:x}-{status.st_mtime_ns:x}"


class LocalStore(ObjectStore):
    """Objects as files below the folder `root`, which is made when something is first written."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root).absolute()
        self.uri = str(self._root)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder, _, _ = prefix.rpartition("/")
        if folder:
            check_name(folder, self.uri)
        for name, entry in self._files(folder):
            if name.startswith(prefix) and not entry.name.startswith(TEMPORARY_PREFIX):
                with contextlib.suppress(FileNotFoundError):  # deleted while we were listing
                    yield _info(name, entry.stat())

    def stat(self, name: str) -> ObjectInfo:
        path = self._path(name)
        with translated(str(path)):
            if path.is_dir():
                raise IsADirectoryError
            return _info(name, path.stat())

    def read(self, name: str, limit: int | None = None) -> bytes:
        path = self._path(name)
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait forever.
        with translated(str(path)), open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise NotAFile(str(path), "is a device or a pipe, not a regular file")
            if limit is not None and status.st_size > limit:
                raise ObjectTooLarge(str(path), f"has more than {limit} bytes")
            return file.read()

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        path = self._path(name)
        filled = 0
        with translated(str(path)), path.open("rb", buffering=0) as file:
            file.seek(offset)
            while filled < len(buffer) and (count := file.readinto(buffer[filled:])):
                filled += count
        if filled < len(buffer):
            missing = len(buffer) - filled
            raise ObjectDamaged(str(path), f"ends {missing} bytes before {offset + len(buffer)}; it was truncated")

    def open(self, name: str, etag: str | None = None) -> BinaryIO:
        path = self._path(name)
        with translated(str(path)):
            file = _LocalReader(str(path))
            try:
                check_version(str(path), local_etag(os.fstat(file.fileno())), etag)
            except ObjectDamaged:
                file.close()
                raise
            return io.BufferedReader(file, _BUFFER)

    def create(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        with _translated_write(str(path)):
            temporary = _write_temporary(path, data)
            try:
                if not _link(temporary, path):
                    return False
            finally:
                temporary.unlink()
            _sync_folder(path.parent)
        return True

    def put(self, name: str, data: BytesLike) -> None:
        with self.writer(name) as writer:
            writer.write(data)

    def writer(self, name: str) -> ObjectWriter:
        return _LocalWriter(self._path(name))

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _translated_write(str(path)), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def list_unfinished(self) -> Iterator[UnfinishedWrite]:
        for name, entry in self._files(""):
            if entry.name.startswith(TEMPORARY_PREFIX):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    yield UnfinishedWrite(name, name, status.st_size, status.st_mtime)

    def remove_unfinished(self, unfinished: UnfinishedWrite) -> None:
        self.delete(unfinished.handle)

    def _path(self, name: str) -> Path:
        return self._root / check_name(name, self.uri)

    def _files(self, folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """All files below a folder of the root, by name below the root, in one fixed order; none if it is not there."""
        path = self._root / folder
        with translated(str(path)):
            try:
                entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                return
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                yield from self._files(name)
            else:
                yield name, entry


class _LocalReader(io.FileIO):
    """A file whose errors while it is read, a stale mount's say, are the store's: they are not damage of its bytes."""

    def readinto(self, buffer: Buffer, /) -> int | None:
        with translated(str(self.name)):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with translated(str(self.name)):
            return super().readall()


class _LocalWriter(ObjectWriter):
    """Writes beside the target and renames at the end, so that a kill at any moment leaves no half object."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _translated_write(str(path)):
            self._temporary = _temporary_path(path)
            self._file = self._temporary.open("xb", buffering=_BUFFER)

    def write(self, data: BytesLike) -> None:
        with _translated_write(str(self._path)):
            self._file.write(data)

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            with _translated_write(str(self._path)):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._temporary.replace(self._path)
                _sync_folder(self._path.parent)
        except StoreError:
            self.abort()
            raise

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _info(name: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(name, status.st_size, local_etag(status), status.st_mtime)


def _temporary_path(path: Path) -> Path:
    """A fresh temporary name in the folder of `path` (a rename or link must not cross file systems)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"


def _write_temporary(path: Path, data: bytes) -> Path:
    temporary = _temporary_path(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _link(temporary: Path, path: Path) -> bool:
    """Give a complete file its name: one system call decides who wins. False if another file has the name."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # Where the answer is lost on its way, NFS asks again, and finds the name that it has just given.
        return path.samefile(temporary)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            message = "the file system has no hard links, which create-only commits need; use another folder or S3"
            raise StoreError(str(path), message) from None
        raise
    return True


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power loss, not only its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
