"""Images that a record names by path, or carries in Hugging Face's `{bytes, path}` form."""

from __future__ import annotations

import posixpath

from trio_ray.errors import ObjectMissing
from trio_ray.source.rejection import Rejected
from trio_ray.source.sample import Opener, Reason

_NAME_BYTES = 255
"""Longest name of a file in the usual file systems."""


def folder_of(uri: str) -> str:
    """The folder (local or `s3://bucket/prefix`) that the file `uri` lies in."""
    return uri.rpartition("/")[0] or ("/" if uri.startswith("/") else ".")


def image_uri(path: str, root: str) -> str:
    """Where an image named `path` lies: absolute paths and `s3://` URIs as they are, others below `root`.

    Raises:
        Rejected: IMAGE_MISSING for names that nothing can be stored under.
    """
    scheme, mark, _ = path.partition("://")
    if mark and scheme != "s3":
        raise Rejected(Reason.IMAGE_MISSING, f"{path!r} is neither a path nor an s3:// URI")
    if not _can_be_a_name(path):
        raise Rejected(Reason.IMAGE_MISSING, f"{path!r} does not name a file")
    if mark or path.startswith("/"):
        return path
    if root.startswith("s3://"):
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        return f"s3://{bucket}{posixpath.normpath(posixpath.join('/', prefix, path))}"
    return posixpath.join(root, path)


def _can_be_a_name(path: str) -> bool:
    """Whether a file or object may have this name; a store would fail on others, and be asked again."""
    try:
        parts = path.encode("utf-8").split(b"/")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return bool(path.strip("/.")) and "\0" not in path and max(map(len, parts)) <= _NAME_BYTES


def read_images(cell: object, root: str, opener: Opener) -> tuple[bytes, ...]:
    """The encoded images of a cell: bytes, a path, `{bytes, path}` (bytes win), or a list of these.

    Raises:
        Rejected: IMAGE_MISSING, when a path leads nowhere or an entry holds no image.
        StoreError: the store failed in another way than having no such object.
    """
    if cell is None:
        return ()
    return tuple(_read_image(entry, root, opener) for entry in (cell if isinstance(cell, list) else [cell]))


def _read_image(entry: object, root: str, opener: Opener) -> bytes:
    if isinstance(entry, dict):
        entry = entry.get("bytes") if entry.get("bytes") is not None else entry.get("path")
    if isinstance(entry, bytes):
        return entry
    if not isinstance(entry, str):
        raise Rejected(Reason.IMAGE_MISSING, f"{type(entry).__name__} where image bytes or a path belong")
    uri = image_uri(entry, root)
    try:
        return opener.read(uri)
    except ObjectMissing:
        raise Rejected(Reason.IMAGE_MISSING, f"{uri} does not exist") from None
