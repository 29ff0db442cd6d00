"""Images that a record names by path, or carries itself.

They come as bytes, base64, a data URI, or in Hugging Face's form `{bytes, path}`.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from trio_ray.config import SourceConfig
from trio_ray.errors import NotAFile, ObjectMissing, ObjectTooLarge
from trio_ray.source.images import is_image
from trio_ray.source.rejection import Rejected, bounded, listed, shown
from trio_ray.source.sample import Opener, Reason

_NAME_BYTES = 255
"""Longest name of a file in the usual file systems."""

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}")
_FIELDS = ("bytes", "image_url", "url", "path", "image", "data", "source")


@dataclass(frozen=True, slots=True)
class ImagePlaces:
    """Where the images of a file's records may lie, and how much of one is read.

    Attributes:
        root: names in records are taken from here.
        allowed: folders that images must lie in; empty: anywhere.
        max_bytes: of one image file.
    """

    root: str
    allowed: tuple[str, ...]
    max_bytes: int

    @classmethod
    def of(cls, uri: str, config: SourceConfig) -> ImagePlaces:
        """Those of the input file `uri`."""
        folder = folder_of(uri)
        root = folder if config.image_root is None else config.image_root.removeprefix("file://")
        allowed = () if config.allow_any_path else (folder, root)
        return cls(root, tuple(map(_normalised, allowed)), config.max_image_bytes)


def folder_of(uri: str) -> str:
    """The folder (local or `s3://bucket/prefix`) that the file `uri` lies in."""
    return uri.rpartition("/")[0] or ("/" if uri.startswith("/") else ".")


def image_uri(path: str, places: ImagePlaces) -> str:
    """Where an image named `path` lies: absolute paths and `s3://` URIs as they are, others below the root.

    Steps such as `..` are resolved in the text, and what is opened is the resolved path. Links that lie in an allowed
    folder are followed: whoever owns the folder has put them there, as the Hugging Face cache does.

    Raises:
        Rejected: IMAGE_MISSING for names that nothing can be stored under, IMAGE_OUTSIDE for one outside of
            `places.allowed`.
    """
    scheme, mark, _ = path.partition("://")
    if mark and scheme in ("http", "https"):
        raise Rejected(
            Reason.IMAGE_MISSING,
            f"{shown(path)} is a web address, and nothing is downloaded here; download the images first, for "
            "example with img2dataset",
        )
    if mark and scheme != "s3":
        raise Rejected(Reason.IMAGE_MISSING, f"{shown(path)} is neither a path nor an s3:// URI")
    if not _can_be_a_name(path):
        raise Rejected(Reason.IMAGE_MISSING, f"{shown(path)} does not name a file")
    if mark or path.startswith("/"):
        uri = _normalised(path)
    else:
        uri = _normalised(f"{places.root.rstrip('/')}/{path}")
    if places.allowed and not any(_lies_in(uri, folder) for folder in places.allowed):
        raise Rejected(
            Reason.IMAGE_OUTSIDE,
            f"{shown(path)} lies outside of {listed(dict.fromkeys(places.allowed))}; name the folder of the images in "
            "source.image_root, or set source.allow_any_path: true if you trust the file",
        )
    return uri


def _normalised(uri: str) -> str:
    """The URI without `.`, `..` and doubled slashes; `..` never leaves a bucket or the file system's root."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return f"s3://{bucket}{posixpath.normpath('/' + key)}".rstrip("/")
    path = posixpath.normpath(uri)
    return "/" + path.lstrip("/") if path.startswith("//") else path


def _lies_in(uri: str, folder: str) -> bool:
    if folder == ".":
        return not uri.startswith(("/", "../", "s3://")) and uri != ".."
    return uri.startswith(folder.rstrip("/") + "/")


def _can_be_a_name(path: str) -> bool:
    """Whether a file or object may have this name; a store would fail on others, and be asked again."""
    try:
        parts = path.encode("utf-8").split(b"/")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return bool(path.strip("/.")) and "\0" not in path and max(map(len, parts)) <= _NAME_BYTES


def read_images(cell: object, places: ImagePlaces, opener: Opener) -> tuple[bytes, ...]:
    """The encoded images of a cell.

    A cell is bytes, base64, a data URI, a path, `{bytes, path}` (bytes win), OpenAI's `{url}`, or a list of these.
    Gaps in a list are passed over.

    Raises:
        Rejected: IMAGE_MISSING where a path leads nowhere or an entry holds no image, IMAGE_OUTSIDE, IMAGE_TOO_LARGE,
            IMAGE_CORRUPT for base64 that is broken.
        StoreError: the store failed in another way than having no such object.
    """
    entries: Sequence[object] = cell if isinstance(cell, list | tuple) else [cell]
    return tuple(_read_image(entry, places, opener) for entry in entries if entry is not None)


def _read_image(entry: object, places: ImagePlaces, opener: Opener) -> bytes:
    if isinstance(entry, dict):
        return _read_image(_field(entry), places, opener)
    if isinstance(entry, bytes):
        return _within(entry, places)
    if not isinstance(entry, str):
        raise Rejected(Reason.IMAGE_MISSING, f"{shown(entry)} where an image's bytes or path belong")
    if entry.startswith("data:"):
        return _within(_data_uri(entry, places), places)
    if (data := _image_in_base64(entry, places)) is not None:
        return _within(data, places)
    uri = image_uri(entry, places)
    try:
        return opener.read(uri, places.max_bytes)
    except ObjectMissing:
        raise Rejected(
            Reason.IMAGE_MISSING,
            f"{bounded(uri, 300)} does not exist; source.image_root names the folder that image paths begin at",
        ) from None
    except NotAFile:
        raise Rejected(Reason.IMAGE_MISSING, f"{bounded(uri, 300)} is a device or a pipe, not a file") from None
    except ObjectTooLarge:
        raise _too_large(bounded(uri, 300), places) from None


def _field(entry: dict[str, object]) -> object:
    """What stands for the image in a struct."""
    name = next((name for name in _FIELDS if entry.get(name) is not None), None)
    if name is None:
        raise Rejected(Reason.IMAGE_MISSING, f"an image of the fields {listed(entry)}, which hold no bytes and no path")
    value = entry[name]
    if isinstance(value, list | tuple) or (isinstance(value, dict) and _field_depth(value) > 2):
        raise Rejected(Reason.IMAGE_MISSING, f"the image's field {name!r} holds {shown(value)}")
    return value


def _field_depth(value: object) -> int:
    """How many structs lie in each other, counted up to 3."""
    depth = 0
    while isinstance(value, dict) and depth < 3:
        depth += 1
        value = next((value[name] for name in _FIELDS if value.get(name) is not None), None)
    return depth


def _within(data: bytes, places: ImagePlaces) -> bytes:
    if len(data) > places.max_bytes:
        raise _too_large(f"an image of {len(data)} bytes", places)
    return data


def _too_large(what: str, places: ImagePlaces) -> Rejected:
    return Rejected(Reason.IMAGE_TOO_LARGE, f"{what} is larger than source.max_image_bytes = {places.max_bytes} allows")


def _data_uri(uri: str, places: ImagePlaces) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise Rejected(Reason.IMAGE_CORRUPT, "a data URI without a comma")
    if not head.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(body)
    return _decoded(body, places)


def _decoded(text: str, places: ImagePlaces) -> bytes:
    if len(text) > 2 * places.max_bytes:
        raise _too_large(f"an image of {len(text)} characters of base64", places)
    plain = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Rejected(Reason.IMAGE_CORRUPT, f"an image in base64 that cannot be decoded: {error}") from None


def _image_in_base64(text: str, places: ImagePlaces) -> bytes | None:
    """The image that a text holds in base64, None where it is the name of a file."""
    head = "".join(text[:128].split())
    if "." in head or not _BASE64.fullmatch(head):
        return None
    try:
        start = _decoded(head[: len(head) // 4 * 4], places)
    except Rejected:
        return None
    return _decoded(text, places) if is_image(start) else None
