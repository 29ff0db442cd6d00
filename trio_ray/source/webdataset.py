"""WebDataset tars: consecutive members with one key are one sample.

The key is a member's name up to the first dot of its base name, with its folder (`source.key_until`). By default
`.jpg`, `.png` and so on are the image, `.0.jpg`, `.1.jpg` several; the text comes from `.json` if that holds a prompt,
else from `.txt`; `source.image_member`, `text_member` and `answer_member` choose others. Members beside these are
passed over. Whatever does not fit together as one sample is reported, and never becomes a sample that looks good.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import BinaryIO

from trio_ray.config import SourceConfig
from trio_ray.source.conversation import ANSWER_FIELDS, TEXT_FIELDS, has_prompt, text_fields
from trio_ray.source.options import matching, natural
from trio_ray.source.record import Row, parse_record, row_key, told_from_rows
from trio_ray.source.rejection import Rejected, ShardDamaged, listed, shown
from trio_ray.source.sample import Reason
from trio_ray.source.tar_archive import TarArchive

MAX_TEXT_BYTES = 1 << 24

_FIRST_DOT = re.compile(r"(?P<key>(?:.*/)?[^./][^/.]*)\.(?P<suffix>[^/]+)", re.DOTALL)
_LAST_DOT = re.compile(r"(?P<key>(?:.*/)?[^./][^/]*)\.(?P<suffix>[^/.]+)", re.DOTALL)
_IMAGE = re.compile(r"(?:(?P<number>\d+)\.)?(?P<ending>jpe?g|png|webp|gif|bmp|tiff?|avif|jp2|j2k)")
_ENDS_AS_IMAGE = re.compile(rf".*\.(?:{_IMAGE.pattern})")
_HIDDEN = re.compile(r"(?:.*/)?(?:\.[^/]*|__MACOSX(?:/.*)?)", re.DOTALL)


def read_webdataset(file: BinaryIO, uri: str, config: SourceConfig, passed: Callable[[], bool]) -> Iterator[Row]:
    """The rows of a tar (also gzip-compressed), in order.

    A damaged tar costs its last sample as well, which cannot be known to be complete.

    Args:
        file: seekable.
        uri: of the file, for keys that are made from it.
        config: which members are image, text and answer, and where the prompt lies in a `.json`.
        passed: whether the next sample is one to skip; its images are then passed, unless asked for later.

    Raises:
        ShardDamaged: where the archive ends early or is garbled; the rows before it have been yielded.
    """
    archive = TarArchive(file)
    name_of = _FIRST_DOT if config.key_until == "first_dot" else _LAST_DOT
    seen: set[str] = set()
    group: _Group | None = None
    number = 0
    try:
        for member in archive.members():
            path = member.name.removeprefix("./")
            if _HIDDEN.fullmatch(path):
                continue
            name = name_of.fullmatch(path)
            key, suffix = (path, "") if name is None else (name["key"], name["suffix"].lower())
            if group is None or group.key != key or suffix in group.members:
                if group is not None:
                    yield group.row(uri, number, config)
                    number += 1
                group = _Group(archive, key, config, skimmed=passed(), repeated=key in seen)
                seen.add(key)
            group.add(suffix, member)
        archive.check_end()
    except ShardDamaged as damage:
        lost = "" if group is None else f" (sample {shown(group.key)} may be incomplete and is left out)"
        raise ShardDamaged(damage.reason, damage.detail + lost) from None
    if group is not None:
        yield group.row(uri, number, config)


class _Group:
    """The members of one sample.

    Contents are read while the archive passes them, for a seek back can be dear.
    """

    def __init__(self, archive: TarArchive, key: str, config: SourceConfig, skimmed: bool, repeated: bool) -> None:
        self.key = key
        self.members: dict[str, tarfile.TarInfo] = {}
        self._archive = archive
        self._config = config
        self._skimmed = skimmed
        self._repeated = repeated
        self._contents: dict[str, bytes | Rejected] = {}

    def add(self, suffix: str, member: tarfile.TarInfo) -> None:
        self.members[suffix] = member
        if suffix in self._text_members() or (not self._skimmed and suffix in self._image_members()):
            self._contents[suffix] = self._read(suffix)

    def row(self, uri: str, number: int, config: SourceConfig) -> Row:
        key = row_key(config, uri, number) if config.keys == "row" else told_from_rows(self.key)
        try:
            self._check()
            record: Mapping[str, object] | Rejected = self._record(config)
        except Rejected as fault:
            record = fault
        return Row(key, record, self._images)

    def _check(self) -> None:
        """That the members are those of one sample.

        Raises:
            Rejected: they are not, or cannot be known to be.
        """
        images, texts = self._image_members(), self._text_members()
        ending = f"{shown(self.key)} has the members {listed(f'.{suffix}' for suffix in self.members)}"
        if self._repeated and not (images and (texts or not self._config.needs_text)):
            raise Rejected(
                Reason.MEMBERS_SCATTERED,
                f"{ending}, and others elsewhere in the tar: the members of a sample must be adjacent. Sort the tar by "
                "name (tar --sort=name)",
            )
        if "" in self.members:
            raise Rejected(Reason.MEMBER_STRAY, f"the member {shown(self.key)} has no ending and belongs to no sample")
        dotted = [suffix for suffix in self.members if _ENDS_AS_IMAGE.fullmatch(suffix) and suffix not in images]
        if self._config.text_member is None and self._config.image_member is None:
            self._check_names(images, dotted, ending)
        if not images and not texts:
            hint = "; name the image's member in source.image_member" if dotted else ""
            raise Rejected(Reason.MEMBER_STRAY, f"{ending}, none of which is an image or a text{hint}")
        if not images and dotted:
            raise Rejected(
                Reason.MEMBERS_UNCLEAR, f"{ending}; name the one that is the image in source.image_member (image.jpg)"
            )

    def _check_names(self, images: list[str], dotted: list[str], ending: str) -> None:
        cut = "; if the dots belong to the samples' names, set source.key_until: last_dot"
        stems = {suffix.rpartition(".")[0] for suffix in (images or dotted)} - {""}
        named = (suffix.rpartition(".") for suffix in self.members)
        if any(stem in stems for stem, _, kind in named if kind in _TEXTS):
            raise Rejected(Reason.MEMBERS_UNCLEAR, f"{ending}, of several samples{cut}")
        plain = [suffix for suffix in images if "." not in suffix]
        if len(plain) > 1:
            raise Rejected(Reason.MEMBERS_UNCLEAR, f"{ending}; name the one that is the image in source.image_member")
        numbers = [int(suffix.partition(".")[0]) for suffix in images if "." in suffix]
        if numbers and (numbers[0] > 1 or any(after != before + 1 for before, after in pairwise(numbers))):
            raise Rejected(
                Reason.MEMBERS_UNCLEAR, f"{ending}; the numbers of its images do not follow each other from 0 or 1{cut}"
            )

    def _image_members(self) -> list[str]:
        """Endings of the image members, numbered ones in the order of their numbers behind those without one."""
        if self._config.image_member is not None:
            return matching(self.members, self._config.image_member)
        return sorted(filter(_IMAGE.fullmatch, self.members), key=lambda name: ("." in name, natural(name)))

    def _text_members(self) -> list[str]:
        # The .json is read in any case: the answer may be in it.
        wanted = _TEXTS if self._config.text_member is None else (self._config.text_member, "json")
        answer = () if self._config.answer_member is None else (self._config.answer_member,)
        return [suffix for suffix in dict.fromkeys((*wanted, *answer)) if suffix in self.members]

    def _record(self, config: SourceConfig) -> Mapping[str, object]:
        answer = {} if config.answer_member is None else self._answer(config.answer_member, config)
        if config.text_member is None:
            return {**self._prompt("json", "txt", config), **answer}
        if config.text_member.rpartition(".")[2] == "json":
            return {**self._prompt(config.text_member, "", config), **answer}
        return {**self._prompt("json", config.text_member, config, text_first=True), **answer}

    def _prompt(self, json: str, txt: str, config: SourceConfig, text_first: bool = False) -> Mapping[str, object]:
        """The fields of the `.json` member, with the text of the other where they hold no prompt."""
        text, data = self._contents.get(txt), self._contents.get(json)
        if isinstance(data, Rejected):
            raise data
        record = parse_record(data) if data or (data is not None and text is None) else {}
        if (has_prompt(record, config) and not text_first) or text is None:
            return record
        if isinstance(text, Rejected):
            raise text
        if config.text_template is not None:
            return {TEXT_FIELDS[-1]: text, **record}
        # The prompt's field, not a conversation's: in that one text would have to be turns.
        field = config.text_column or TEXT_FIELDS[-1]
        others = {name: value for name, value in record.items() if name not in text_fields(config)}
        return others | {field: text.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").removesuffix(b"\r")}

    def _answer(self, member: str, config: SourceConfig) -> dict[str, object]:
        content = self._contents.get(member)
        if isinstance(content, Rejected):
            raise content
        return {} if content is None else {config.answer_column or ANSWER_FIELDS[0]: content}

    def _images(self) -> tuple[bytes, ...]:
        images = []
        for suffix in self._image_members():
            content = self._contents.get(suffix)
            if content is None:
                content = self._read(suffix)
            if isinstance(content, Rejected):
                raise content
            images.append(content)
        return tuple(images)

    def _read(self, suffix: str) -> bytes | Rejected:
        try:
            if suffix in self._text_members():
                return self._archive.read(self.members[suffix], MAX_TEXT_BYTES, Reason.TEXT_MALFORMED)
            return self._archive.read(self.members[suffix], self._config.max_image_bytes, Reason.IMAGE_TOO_LARGE)
        except Rejected as fault:
            return fault


_TEXTS = ("json", "txt")
"""Endings of the text members, in the order in which a prompt is looked for."""
