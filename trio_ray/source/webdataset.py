"""WebDataset tars: consecutive members with one key are one sample.

The key is a member's name up to the first dot of its base name, with its folder. `.jpg`, `.png` and so on are
the image, `.0.jpg`, `.1.jpg` several; the text comes from `.json` if that holds a prompt, else from `.txt`.
Other members and hidden files are passed over.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from trio_ray.config import SourceConfig
from trio_ray.source.conversation import has_prompt, text_fields
from trio_ray.source.record import Row, parse_object
from trio_ray.source.rejection import Rejected, ShardDamaged
from trio_ray.source.sample import Reason
from trio_ray.source.tar_archive import TarArchive

MAX_IMAGE_BYTES = 1 << 30
MAX_TEXT_BYTES = 1 << 24

_NAME = re.compile(r"(?P<key>(?:.*/)?[^./][^/.]*)\.(?P<suffix>[^/]+)", re.DOTALL)
_IMAGE = re.compile(r"(?:(?P<number>\d+)\.)?(?:jpe?g|png|webp|gif|bmp|tiff?)")


def read_webdataset(file: BinaryIO, config: SourceConfig, passed: Callable[[], bool]) -> Iterator[Row]:
    """The rows of a tar (also gzip-compressed), in order.

    A damaged tar costs its last sample as well, which cannot be known to be complete.

    Args:
        file: seekable.
        config: where the prompt lies in a `.json`.
        passed: whether the next sample is one to skip; its images are then passed, unless asked for later.

    Raises:
        ShardDamaged: where the archive ends early or is garbled; the rows before it have been yielded.
    """
    archive = TarArchive(file)
    group: _Group | None = None
    try:
        for member in archive.members():
            name = _NAME.fullmatch(member.name.removeprefix("./"))
            if name is None:
                continue
            key, suffix = name["key"], name["suffix"].lower()
            if group is None or group.key != key or suffix in group.members:
                if group is not None:
                    yield group.row(config)
                group = _Group(archive, key, skimmed=passed())
            group.add(suffix, member)
        archive.check_end()
    except ShardDamaged as damage:
        lost = "" if group is None else f" (sample {group.key!r} may be incomplete and is left out)"
        raise ShardDamaged(damage.reason, damage.detail + lost) from None
    if group is not None:
        yield group.row(config)


class _Group:
    """The members of one sample.

    Contents are read while the archive passes them, for a seek back can be dear.
    """

    def __init__(self, archive: TarArchive, key: str, skimmed: bool) -> None:
        self.key = key
        self.members: dict[str, tarfile.TarInfo] = {}
        self._archive = archive
        self._skimmed = skimmed
        self._contents: dict[str, bytes | Rejected] = {}

    def add(self, suffix: str, member: tarfile.TarInfo) -> None:
        self.members[suffix] = member
        if suffix in ("json", "txt") or (_IMAGE.fullmatch(suffix) and not self._skimmed):
            self._contents[suffix] = self._read(suffix)

    def row(self, config: SourceConfig) -> Row:
        try:
            record: Mapping[str, object] | Rejected = self._record(config)
        except Rejected as fault:
            record = fault
        return Row(self.key, record, self._images)

    def _record(self, config: SourceConfig) -> Mapping[str, object]:
        txt = self._contents.get("txt")
        data = self._contents.get("json")
        if isinstance(data, Rejected):
            raise data
        record = parse_object(data) if data or (data is not None and txt is None) else {}
        if has_prompt(record, config) or txt is None:
            return record
        if isinstance(txt, Rejected):
            raise txt
        fields = text_fields(config)
        others = {name: value for name, value in record.items() if name not in fields}
        return others | {fields[-1]: txt.removesuffix(b"\n").removesuffix(b"\r")}

    def _images(self) -> tuple[bytes, ...]:
        images = []
        for suffix in sorted(filter(_IMAGE.fullmatch, self.members), key=_image_number):
            content = self._contents.get(suffix)
            if content is None:
                content = self._read(suffix)
            if isinstance(content, Rejected):
                raise content
            images.append(content)
        return tuple(images)

    def _read(self, suffix: str) -> bytes | Rejected:
        try:
            if suffix in ("json", "txt"):
                return self._archive.read(self.members[suffix], MAX_TEXT_BYTES, Reason.TEXT_MALFORMED)
            return self._archive.read(self.members[suffix], MAX_IMAGE_BYTES, Reason.IMAGE_TOO_LARGE)
        except Rejected as fault:
            return fault


def _image_number(suffix: str) -> int:
    """Sorts numbered images by number, behind those without one; equals stay in the tar's order."""
    name = _IMAGE.fullmatch(suffix)
    return int(name["number"]) if name is not None and name["number"] is not None else -1
