"""The job's input: which files its patterns name, and how a source opens them."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

from trio_ray.config import S3Config
from trio_ray.errors import ConfigError, StoreError
from trio_ray.store.local import local_etag, translated
from trio_ray.store.objects import ObjectStore
from trio_ray.store.opening import S3_SCHEME, local_path, open_store, split_s3_uri

_FIELD = "input"
_THREADS = 16

_WORTH_LISTING = 64
"""Files in one bucket from which on they are listed: a page of a listing has a thousand names."""

_LISTED_FOR_EACH = 10
"""Names that are listed for each that is wanted, at most."""
_FILES_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input file. Where it was named outright but cannot be read, `size` is -1, `etag` empty, and `why` the
    reason in a sentence.
    """

    uri: str
    size: int
    etag: str
    why: str = ""

    @property
    def readable(self) -> bool:
        return self.size >= 0


class StoreOpener:
    """Opens local paths and s3:// URIs for the sources (a `trio_ray.source.sample.Opener`); picklable."""

    def __init__(self, s3: S3Config) -> None:
        self._s3 = s3
        self._buckets: dict[str, ObjectStore] = {}

    def __reduce__(self) -> tuple[type[StoreOpener], tuple[S3Config]]:
        return StoreOpener, (self._s3,)

    def open(self, uri: str, etag: str | None = None) -> BinaryIO:
        """A seekable, buffered, read-only binary file.

        Args:
            uri: of the file.
            etag: the version that was listed (`InputFile.etag`); any if not given.

        Raises:
            ObjectDamaged: the file was replaced since then.
            StoreError: it cannot be opened.
        """
        store, name = self.locate(uri)
        return store.open(name, etag)

    def read(self, uri: str, limit: int | None = None) -> bytes:
        """The whole of an object, which has at most `limit` bytes.

        Raises:
            ObjectTooLarge: it has more.
            NotAFile: it is a device or a pipe.
            StoreError: it cannot be read.
        """
        store, name = self.locate(uri)
        return store.read(name, limit)

    def locate(self, uri: str) -> tuple[ObjectStore, str]:
        """The store that holds `uri`, one client a bucket, and the object's name in it."""
        if uri.startswith(S3_SCHEME):
            bucket, key = split_s3_uri(uri)
            return self._store(f"{S3_SCHEME}{bucket}"), key
        path = local_path(uri).resolve()
        return self._store(path.anchor), path.relative_to(path.anchor).as_posix()

    def _store(self, root: str) -> ObjectStore:
        # Two threads may make one store each; the loser's has no client yet and is simply dropped.
        return self._buckets.setdefault(root, open_store(root, self._s3))


def expand_inputs(patterns: Iterable[str], s3: S3Config) -> list[InputFile]:
    """All files that `patterns` name, in the patterns' order, matches of a glob sorted, duplicates removed.

    A pattern may hold globs (`*`, `?`, `[...]`, and `**` for any depth) and brace ranges such as
    `{00000..00099}`.

    Raises:
        ConfigError: (field `input`) no pattern, a name that is not UTF-8, a glob that matches nothing or cannot be
            listed, or not one readable file. A file that is named outright and cannot be read is returned with
            size -1: one lost shard of a thousand is for the job to report, not a reason to do nothing.
    """
    opener = StoreOpener(s3)
    errors: list[StoreError] = []
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        for file in _expand(pattern, opener, errors):
            found.setdefault(file.uri, file)
    for uri in found:
        if not _is_utf8(uri):
            raise ConfigError(_FIELD, f"the file name {uri!r} is not UTF-8, which no record can hold; rename the file")
    if not found:
        raise ConfigError(_FIELD, "names no file; give paths or s3:// URIs of shards")
    if not any(file.readable for file in found.values()):
        raise ConfigError(_FIELD, f"not one of {len(found)} files can be read; the first: {errors[0]}")
    return list(found.values())


def _is_utf8(uri: str) -> bool:
    try:
        uri.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _expand(pattern: str, opener: StoreOpener, errors: list[StoreError]) -> Iterator[InputFile]:
    exact = _stat(pattern, opener) if _looks_special(pattern) else None
    if isinstance(exact, InputFile):  # a real file whose name happens to hold brackets or braces
        yield exact
        return
    named: list[str] = []
    for expanded in _expand_braces(pattern):
        if glob.has_magic(expanded):
            yield from _look_up(named, opener, errors)
            named = []
            yield from _glob(expanded, opener)
        else:
            named.append(expanded)
    yield from _look_up(named, opener, errors)


def _looks_special(pattern: str) -> bool:
    return glob.has_magic(pattern) or "{" in pattern


def _expand_braces(pattern: str) -> list[str]:
    from braceexpand import braceexpand  # here, as those who open what others have expanded do not need it

    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError:
        raise ConfigError(_FIELD, f"{pattern!r} has unbalanced braces") from None


def _look_up(uris: list[str], opener: StoreOpener, errors: list[StoreError]) -> Iterator[InputFile]:
    """Files that were named outright: of many S3 objects as a listing shows them, else each by a request of its own."""
    listed = _listed(uris, opener) if len(uris) >= _WORTH_LISTING else {}
    with ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(lambda uri: listed.get(uri) or _stat(uri, opener), uris)
        for uri, result in zip(uris, results, strict=True):
            if isinstance(result, StoreError):
                errors.append(result)
                yield InputFile(_full_uri(uri), -1, "", str(result))
            else:
                yield result


def _listed(uris: list[str], opener: StoreOpener) -> dict[str, InputFile]:
    """Those of the S3 objects that listing what their names have in common finds; it ends where too much else lies."""
    of_bucket: dict[ObjectStore, dict[str, str]] = {}
    for uri in uris:
        if uri.startswith(S3_SCHEME):
            store, name = opener.locate(uri)
            of_bucket.setdefault(store, {})[name] = uri
    found: dict[str, InputFile] = {}
    for store, wanted in of_bucket.items():
        common = os.path.commonprefix(list(wanted))  # noqa: RUF071 (a listing takes any beginning of a name)
        with contextlib.suppress(StoreError):  # who may not list may still read
            for info in islice(store.list(common), _LISTED_FOR_EACH * len(wanted)):
                if info.name in wanted:
                    uri = wanted[info.name]
                    found[uri] = InputFile(_full_uri(uri), info.size, info.etag)
    return found


def _stat(uri: str, opener: StoreOpener) -> InputFile | StoreError:
    try:
        store, name = opener.locate(uri)
        info = store.stat(name)
    except StoreError as error:
        _refuse_folder(uri)
        return error
    return InputFile(_full_uri(uri), info.size, info.etag)


def _refuse_folder(uri: str) -> None:
    """Raise `ConfigError` with what to write instead if a local path is a folder."""
    if "://" in uri and not uri.startswith("file://"):
        return
    try:
        path = local_path(uri)
        if not path.is_dir():
            return
        endings = Counter(file.suffix for file in islice(path.iterdir(), _FILES_LOOKED_AT) if file.is_file())
    except (OSError, ValueError, StoreError):
        return
    endings.pop("", None)
    commonest = endings.most_common(1)[0][0] if endings else ".tar"
    raise ConfigError(_FIELD, f"{uri} is a folder; name its files, such as '{uri.rstrip('/')}/*{commonest}'")


def _full_uri(uri: str) -> str:
    """Local files by absolute path: the replicas that read them run in other folders."""
    return uri if "://" in uri and not uri.startswith("file://") else str(local_path(uri))


def _glob(pattern: str, opener: StoreOpener) -> list[InputFile]:
    try:
        matches = _glob_s3(pattern, opener) if pattern.startswith(S3_SCHEME) else _glob_local(pattern)
    except StoreError as error:
        raise ConfigError(_FIELD, f"{pattern!r} cannot be listed: {error}") from None
    if not matches:
        raise ConfigError(_FIELD, f"{pattern!r} matches no file")
    return matches


def _glob_local(pattern: str) -> list[InputFile]:
    files = []
    # Path.glob takes no absolute patterns.
    for path in sorted(glob.glob(str(local_path(pattern)), recursive=True)):  # noqa: PTH207
        with translated(path):
            file = local_path(path)
            if file.is_file():
                status = file.stat()
                files.append(InputFile(path, status.st_size, local_etag(status)))
    return files


def _glob_s3(pattern: str, opener: StoreOpener) -> list[InputFile]:
    store, key_pattern = opener.locate(pattern)
    if not glob.has_magic(key_pattern):
        raise ConfigError(_FIELD, f"{pattern!r} has a wildcard in the bucket's name; name the bucket in full")
    literal = key_pattern[: min(key_pattern.find(sign) for sign in "*?[" if sign in key_pattern)]
    steps = key_pattern.split("/")
    return [
        InputFile(store.uri_of(info.name), info.size, info.etag)
        for info in store.list(literal)
        if _matches(info.name.split("/"), steps)
    ]


def _matches(steps: list[str], patterns: list[str]) -> bool:
    """Whether a key matches, step by step between slashes; `**` stands for any number of steps."""
    if not patterns:
        return not steps
    if patterns[0] == "**":
        return any(_matches(steps[skip:], patterns[1:]) for skip in range(len(steps) + 1))
    return bool(steps) and fnmatch.fnmatchcase(steps[0], patterns[0]) and _matches(steps[1:], patterns[1:])
