"""What is promised of WebDataset tars, whole and damaged."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.source.corpus import OneFileOpener, ReadCounting, encoded, read_file, read_tar, reasons, tar_of
from trio_ray.config import SourceConfig
from trio_ray.source import webdataset as webdataset_source
from trio_ray.source.reader import SHARD_KEY, read_shard
from trio_ray.source.sample import BadSample, Reason, Sample, Shard, Turn

IMAGE = encoded(1)
TAR = tar_of({"__key__": f"{n:04d}", "jpg": encoded(n), "json": {"question": f"q{n}"}} for n in range(5))
WHOLE = read_tar(TAR)


def raw_tar(members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar with exactly these members, of which webdataset's writer would refuse some."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return file.getvalue()


def test_samples_come_as_they_were_written() -> None:
    wanted = [Sample(f"{n:04d}", n, (encoded(n),), (Turn("user", f"q{n}"),), None) for n in range(5)]
    assert read_tar(TAR) == wanted


def test_a_tar_of_img2dataset_uses_the_caption() -> None:
    """Its samples have .jpg, .txt (the caption) and .json (the caption, and the download's metadata)."""
    metadata = {
        "caption": "a cat",
        "url": "http://x/y.jpg",
        "key": "000000007",
        "status": "success",
        "width": 9,
    }
    (item,) = read_tar(tar_of([{"__key__": "000000007", "jpg": IMAGE, "txt": b"a cat", "json": metadata}]))
    assert item == Sample("000000007", 0, (IMAGE,), (Turn("user", "a cat"),), None)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"question": "from json"}, "from json"),
        ({"conversations": [{"from": "human", "value": "from json"}]}, "from json"),
        ({"caption": None, "width": 3}, "from txt"),
        ({"caption": " "}, "from txt"),
        ({"conversations": []}, "from txt"),
    ],
)
def test_a_json_with_a_usable_prompt_wins_over_the_txt(record: dict[str, object], text: str) -> None:
    (item,) = read_tar(tar_of([{"__key__": "a", "jpg": IMAGE, "json": record, "txt": b"from txt\n"}]))
    assert isinstance(item, Sample)
    assert item.turns == (Turn("user", text),)


def test_the_answer_in_the_json_goes_with_the_prompt_in_the_txt() -> None:
    (item,) = read_tar(tar_of([{"__key__": "a", "jpg": IMAGE, "json": {"answer": "yes"}, "txt": b"is it?\r\n"}]))
    assert item == Sample("a", 0, (IMAGE,), (Turn("user", "is it?"),), "yes")


def test_an_empty_json_member_leaves_the_txt_in_charge() -> None:
    (item,) = read_tar(tar_of([{"__key__": "a", "jpg": IMAGE, "json": b"", "txt": b"hello"}]))
    assert isinstance(item, Sample)


def test_the_settings_choose_the_text_of_the_json() -> None:
    data = tar_of([{"__key__": "a", "jpg": IMAGE, "json": {"question": "no", "alt": "yes"}, "txt": b"no"}])
    (item,) = read_tar(data, SourceConfig(text_column="alt"))
    assert isinstance(item, Sample)
    assert item.turns[0].text == "yes"


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "webp", "gif", "bmp", "tif", "tiff"])
def test_images_are_known_by_their_endings(suffix: str) -> None:
    (item,) = read_tar(raw_tar([(f"a.{suffix}", IMAGE), ("a.txt", b"hello")]))
    assert isinstance(item, Sample)
    assert item.images == (IMAGE,)


def test_numbered_images_come_in_the_order_of_their_numbers() -> None:
    """A tar sorted by name has 10 before 2."""
    members = [(f"a.{n}.jpg", encoded(n)) for n in sorted(range(12), key=str)] + [("a.mask.png", b"not one of them")]
    (item,) = read_tar(raw_tar([*members, ("a.txt", b"compare")]))
    assert isinstance(item, Sample)
    assert item.images == tuple(encoded(n) for n in range(12))


def test_keys_keep_their_folder_and_end_at_the_first_dot() -> None:
    members = [(f"{key}.{end}", data) for key in ("x/a", "y.v2/a") for end, data in (("jpg", IMAGE), ("txt", b"t"))]
    items = read_tar(raw_tar([("./x/.hidden.jpg", IMAGE), ("__MACOSX/x/._a.jpg", b""), *members]))
    assert [item.key for item in items] == ["x/a", "y.v2/a"]
    assert reasons(items) == [None, None]
    (dotted,) = read_tar(raw_tar([("./z.jpg", IMAGE), ("./z.seg.npy", b"x"), ("./z.txt", b"t")]))
    assert (dotted.key, reasons([dotted])) == ("z", [None])


def test_directories_links_and_other_members_are_passed_over() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in (("a", tarfile.DIRTYPE), ("a/b.jpg", tarfile.SYMTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            tar.addfile(header)
        for name, content in (("a/b.txt", b"t"), ("a/b.cls", b"3")):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    assert reasons(read_tar(file.getvalue())) == ["text_only"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_keys_like_others(form: int) -> None:
    key = "deep/" * 20 + "k" * 90 if form == tarfile.USTAR_FORMAT else "ü" * 150
    (item,) = read_tar(raw_tar([(f"{key}.jpg", IMAGE), (f"{key}.txt", b"t")], form))
    assert (item.key, reasons([item])) == (key, [None])


def test_a_name_that_is_not_utf8_is_a_key_that_can_be_stored() -> None:
    data = raw_tar([("k\udcff.jpg", IMAGE), ("k\udcff.txt", b"t")], tarfile.GNU_FORMAT)
    (item,) = read_tar(data)
    assert isinstance(item, Sample)
    assert item.key.encode("utf-8") == b"k\\xff"


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ([("b.txt", b"t")], Reason.TEXT_ONLY),
        ([("b.txt", b"<image> t")], Reason.IMAGE_MISSING),
        ([("b.jpg", b""), ("b.txt", b"t")], Reason.IMAGE_EMPTY),
        ([("b.jpg", IMAGE)], Reason.TEXT_MISSING),
        ([("b.jpg", IMAGE), ("b.json", b'{"url": "x"}')], Reason.TEXT_MISSING),
        ([("b.jpg", IMAGE), ("b.txt", b"")], Reason.TEXT_EMPTY),
        ([("b.jpg", IMAGE), ("b.json", b"")], Reason.TEXT_EMPTY),
        ([("b.jpg", IMAGE), ("b.txt", b" \n")], Reason.TEXT_EMPTY),
        ([("b.jpg", IMAGE), ("b.txt", b"caf\xe9")], Reason.TEXT_NOT_UTF8),
        ([("b.jpg", IMAGE), ("b.json", b'{"text": "caf\xe9"}')], Reason.TEXT_NOT_UTF8),
        ([("b.jpg", IMAGE), ("b.json", b'{"text": "x"'), ("b.txt", b"t")], Reason.TEXT_MALFORMED),
        ([("b.jpg", IMAGE), ("b.json", b"[1]")], Reason.TEXT_MALFORMED),
        ([("b.jpg", IMAGE), ("b.json", b"[" * 100_000)], Reason.TEXT_MALFORMED),
        ([("b.jpg", IMAGE), ("b.json", b'{"text": ' + b"1" * 5000 + b"}")], Reason.TEXT_MALFORMED),
        ([("b.jpg", IMAGE), ("b.txt", b"<image> and <image>")], Reason.IMAGE_COUNT),
        ([("b.jpg", IMAGE), ("b.txt", b"x" * 2001)], Reason.TEXT_MALFORMED),
        ([("b.jpg", IMAGE), ("b.json", b'{"text": "' + b"x" * 2001 + b'"}')], Reason.TEXT_MALFORMED),
        ([("b.jpg", b"x" * 3001), ("b.txt", b"t")], Reason.IMAGE_TOO_LARGE),
    ],
)
def test_a_bad_sample_is_named_and_costs_no_other(
    members: list[tuple[str, bytes]], wanted: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    if 2000 < len(members[-1][1]) < 3000:
        monkeypatch.setattr(webdataset_source, "MAX_TEXT_BYTES", 2000)
    data = raw_tar([("a.jpg", IMAGE), ("a.txt", b"t"), *members, ("c.jpg", IMAGE), ("c.txt", b"t")])
    items = read_tar(data, SourceConfig(max_image_bytes=3000))
    assert [item.key for item in items] == ["a", "b", "c"]
    assert [item.index for item in items] == [0, 1, 2]
    assert reasons(items) == [None, wanted.value, None]


def told(members: list[tuple[str, bytes]], **settings: object) -> list[tuple[str, str | None]]:
    """Key and reason of each item of a tar."""
    items = read_tar(raw_tar(members), SourceConfig(**settings))
    return [(item.key, reason) for item, reason in zip(items, reasons(items), strict=True)]


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ([("README", b"about"), ("b.jpg", IMAGE), ("b.txt", b"t")], [("README", "member_stray"), ("b", None)]),
        ([("stats.csv", b"1"), ("b.jpg", IMAGE), ("b.txt", b"t")], [("stats", "member_stray"), ("b", None)]),
        ([("b.npy", b"1"), ("b.cls", b"1")], [("b", "member_stray")]),
        ([("b.image.jpg", IMAGE), ("b.txt", b"t")], [("b", "members_unclear")]),
        ([("b.jpg", IMAGE), ("b.png", IMAGE), ("b.txt", b"t")], [("b", "members_unclear")]),
        ([("b.0.jpg", IMAGE), ("b.2.jpg", IMAGE), ("b.txt", b"t")], [("b", "members_unclear")]),
        ([("b.2.jpg", IMAGE), ("b.3.jpg", IMAGE), ("b.txt", b"t")], [("b", "members_unclear")]),
        (
            [("b.1.jpg", IMAGE), ("b.1.txt", b"t"), ("b.2.jpg", IMAGE), ("b.2.txt", b"u")],
            [("b", "members_unclear")],
        ),
        ([("b.jpg", IMAGE), ("b.txt", b"t"), ("b.1.jpg", IMAGE), ("b.1.txt", b"u")], [("b", "members_unclear")]),
        ([("v1.x.jpg", IMAGE), ("v1.x.json", b'{"text": "t"}')], [("v1", "members_unclear")]),
        ([("b.jpg", IMAGE), ("b.txt", b"t"), ("b.seg.png", IMAGE), ("b.seg.json", b"{}")], [("b", None)]),
        (
            [("b.jpg", IMAGE), ("c.jpg", IMAGE), ("b.txt", b"t"), ("c.txt", b"u")],
            [("b", "text_missing"), ("c", "text_missing"), ("b", "members_scattered"), ("c", "members_scattered")],
        ),
        (
            [("b.0.jpg", IMAGE), ("b.txt", b"t"), ("c.jpg", IMAGE), ("c.txt", b"u"), ("b.1.jpg", IMAGE)],
            [("b", None), ("c", None), ("b", "members_scattered")],
        ),
    ],
)
def test_members_that_are_not_one_sample_are_reported_for_what_they_are(
    members: list[tuple[str, bytes]], wanted: list[tuple[str, str | None]]
) -> None:
    assert told(members) == wanted


def test_where_no_text_is_needed_scattered_members_are_reported_too() -> None:
    members = [("b.jpg", IMAGE), ("c.jpg", IMAGE), ("b.txt", b"t")]
    assert told(members, text_required=False) == [("b", None), ("c", None), ("b", "members_scattered")]


def test_base_names_with_dots_are_keys_on_request() -> None:
    members = [(f"v1.{n}.{end}", data) for n in range(2) for end, data in (("jpg", IMAGE), ("txt", b"t"))]
    assert told(members, key_until="last_dot") == [("v1.0", None), ("v1.1", None)]


@pytest.mark.parametrize(
    ("members", "settings", "images", "text", "answer"),
    [
        ([("b.image.jpg", IMAGE), ("b.txt", b"t")], {"image_member": "image.jpg"}, 1, "t", None),
        ([("b.image.jpg", IMAGE), ("b.txt", b"t")], {"image_member": ".Image.JPG"}, 1, "t", None),
        (
            [("b.input.png", IMAGE), ("b.outputs.txt", b"t")],
            {"image_member": "input.*", "text_member": "outputs.txt"},
            1,
            "t",
            None,
        ),
        (
            [("b.jpg", IMAGE), ("b.mask.png", b"x"), ("b.png", b"y"), ("b.txt", b"t")],
            {"image_member": "jpg"},
            1,
            "t",
            None,
        ),
        ([("b.img10.jpg", IMAGE), ("b.img9.jpg", IMAGE), ("b.txt", b"t")], {"image_member": "img*.jpg"}, 2, "t", None),
        (
            [("b.jpg", IMAGE), ("b.q.json", b'{"text": "t", "answer": "a"}'), ("b.txt", b"no")],
            {"text_member": "q.json"},
            1,
            "t",
            "a",
        ),
        (
            [("b.jpg", IMAGE), ("b.json", b'{"text": "no", "answer": "a"}'), ("b.ask.txt", b"t")],
            {"text_member": "ask.txt"},
            1,
            "t",
            "a",
        ),
        ([("b.jpg", IMAGE), ("b.txt", b"t"), ("b.out.txt", b"a\n")], {"answer_member": "out.txt"}, 1, "t", "a"),
        ([("b.jpg", IMAGE), ("b.cls", b"281")], {"answer_member": "cls", "text_required": False}, 1, "", "281"),
        ([("b.jpg", IMAGE), ("b.txt", b"")], {"text_required": False}, 1, "", None),
    ],
)
def test_the_settings_say_what_each_member_is(
    members: list[tuple[str, bytes]], settings: dict[str, object], images: int, text: str, answer: str | None
) -> None:
    (item,) = read_tar(raw_tar(members), SourceConfig(**settings))
    assert isinstance(item, Sample), item
    assert (len(item.images), item.turns[-1].text, item.answer) == (images, text, answer)


def test_turns_as_a_bare_list_are_a_conversation() -> None:
    turns = b'[{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]'
    (item,) = read_tar(raw_tar([("b.jpg", IMAGE), ("b.json", turns)]))
    assert item == Sample("b", 0, (IMAGE,), (Turn("user", "<image>q"),), "a")


def test_a_byte_order_mark_is_no_part_of_a_prompt() -> None:
    (item,) = read_tar(raw_tar([("b.jpg", IMAGE), ("b.txt", b"\xef\xbb\xbfWhat?")]))
    assert isinstance(item, Sample)
    assert item.turns[0].text == "What?"


def test_the_number_of_a_sample_can_be_its_key() -> None:
    assert told([("a.jpg", IMAGE), ("a.txt", b"t")] * 2, keys="row") == [("tar@0", None), ("tar@1", None)]


@pytest.mark.parametrize("between", [[], [("b.jpg", IMAGE), ("b.txt", b"t")]])
def test_of_samples_with_one_key_the_first_counts(between: list[tuple[str, bytes]]) -> None:
    twice = [("a.jpg", IMAGE), ("a.txt", b"t")]
    items = read_tar(raw_tar([*twice, *between, *twice]))
    assert reasons(items)[0] is None
    assert reasons(items)[-1] == "duplicate_key"
    assert items[-1].key == "a"


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".TAR"])
@pytest.mark.parametrize("compress", [True, False])
def test_compression_is_seen_from_the_bytes_and_not_from_the_name(tmp_path: Path, ending: str, compress: bool) -> None:
    path = tmp_path / f"shard{ending}"
    path.write_bytes(gzip.compress(TAR) if compress else TAR)
    assert read_file(path) == WHOLE


def check_prefix(items: list[Sample | BadSample]) -> None:
    """The samples before the damage, then at most one mark of it."""
    good = items if not items or items[-1].key != SHARD_KEY else items[:-1]
    assert good == WHOLE[: len(good)]
    if len(good) < len(items):
        mark = items[-1]
        assert isinstance(mark, BadSample)
        assert mark.index == len(good)
        assert mark.reason in (Reason.SHARD_TRUNCATED, Reason.SHARD_UNREADABLE)


def test_every_prefix_of_a_tar_gives_a_prefix_of_its_samples() -> None:
    """Cut at every 97th byte and around every block's edge: never an exception, never a partial sample."""
    edges = [block + step for block in range(0, len(TAR), 512) for step in (-1, 0, 1)]
    for cut in sorted({*range(0, len(TAR), 97), *edges}):
        if not 0 <= cut < len(TAR):
            continue
        items = read_tar(TAR[:cut])
        check_prefix(items)
        if items[-1].key != SHARD_KEY:
            assert TAR[cut:].count(0) == len(TAR) - cut, "only a tar that lacks nothing but padding is whole"
        else:
            assert reasons(items)[-1] == "shard_truncated"


def test_every_prefix_of_a_compressed_tar_gives_a_prefix_of_its_samples() -> None:
    data = gzip.compress(TAR)
    for cut in range(0, len(data), 41):
        items = read_tar(data[:cut])
        check_prefix(items)
        assert reasons(items)[-1] in ("shard_truncated", "shard_unreadable")


def test_samples_of_several_images_are_never_cut_to_fewer() -> None:
    """The text comes first, so that each cut behind it leaves what looks like a sample."""
    data = raw_tar([("a.txt", b"t"), ("a.0.jpg", encoded(0)), ("a.1.jpg", encoded(1))])
    for cut in range(0, len(data), 256):
        for item in read_tar(data[:cut]):
            assert isinstance(item, BadSample) or len(item.images) == 2


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(TAR) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
def test_flipped_bytes_never_raise(flips: list[tuple[int, int]], compress: bool) -> None:
    """Indices stay consecutive and only the last item may be the mark of damage."""
    damaged = bytearray(gzip.compress(TAR, mtime=0) if compress else TAR)
    for place, value in flips:
        damaged[place % len(damaged)] = value
    items = read_tar(bytes(damaged))
    assert [item.index for item in items] == list(range(len(items)))
    assert all(item.key != SHARD_KEY for item in items[:-1])


def header_at(data: bytes, place: int, **fields: bytes) -> bytes:
    """`data` with fields of the tar header at byte `place` replaced and its checksum made right again."""
    where = {"size": (124, 12), "type": (156, 1)}
    header = bytearray(data[place : place + 512])
    for name, value in fields.items():
        start, length = where[name]
        header[start : start + length] = value.ljust(length, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:place] + bytes(header) + data[place + 512 :]


PLAIN = raw_tar(
    [
        (f"{n:04d}.{end}", data)
        for n in range(5)
        for end, data in (("jpg", encoded(n)), ("json", b'{"text": "q%d"}' % n))
    ]
)
SECOND = PLAIN.index(b"0001.jpg\0")


@pytest.mark.parametrize("size", [b"7" * 11, b"\x80" + b"\0" * 3 + b"\x7f" * 8, b"\xff" * 11 + b"\x00"])
@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"S"])
def test_an_absurd_size_is_damage_and_not_an_allocation(size: bytes, kind: bytes) -> None:
    file = ReadCounting(header_at(PLAIN, SECOND, size=size, type=kind))
    shard = Shard("t", "t", 1, "e", "webdataset")
    items = list(read_shard(shard, SourceConfig(), OneFileOpener(lambda: file)))
    check_prefix(items)
    assert len(items) <= 2
    assert reasons(items)[-1] in ("shard_truncated", "shard_unreadable")
    assert file.largest <= 1 << 20


def test_a_negative_size_does_not_send_the_reader_in_circles() -> None:
    size = (256**12 - 2048).to_bytes(12, "big")
    items = read_tar(header_at(PLAIN, SECOND, size=size))
    assert reasons(items) == ["shard_unreadable"]


def test_a_garbled_extended_header_is_damage() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        header = tarfile.TarInfo("a.jpg")
        header.size = 10
        header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        tar.addfile(header, io.BytesIO(b"junk\njunk\n"))
    assert reasons(read_tar(file.getvalue())) == ["shard_unreadable"]


def test_a_garbled_header_ends_the_shard_with_a_mark() -> None:
    items = read_tar(PLAIN[:SECOND] + b"garbage!" * 64 + PLAIN[SECOND + 512 :])
    assert reasons(items) == ["shard_unreadable"]
    assert "0000" in items[0].detail, "the sample that may be incomplete is named"


def test_zeros_in_the_middle_are_damage_and_not_the_end() -> None:
    assert reasons(read_tar(PLAIN)) == [None] * 5
    items = read_tar(PLAIN[:SECOND] + bytes(1024) + PLAIN[SECOND + 1024 :])
    assert reasons(items) == ["shard_unreadable"]


def test_a_file_that_is_no_tar_is_unreadable() -> None:
    assert reasons(read_tar(b"<html>Access denied</html>" * 100)) == ["shard_unreadable"]
    assert reasons(read_tar(b"")) == ["shard_truncated"]
    assert reasons(read_tar(b"\x1f\x8b" + b"junk" * 300)) == ["shard_unreadable"]


def test_an_empty_archive_has_no_samples() -> None:
    assert read_tar(raw_tar([])) == []


def test_skipped_samples_are_sought_past() -> None:
    large = [{"__key__": f"{n}", "jpg": bytes([n + 1]) * 400_000, "txt": b"t"} for n in range(10)]
    file = ReadCounting(tar_of(large))
    items = list(
        read_shard(
            Shard("t", "t", 1, "e", "webdataset"),
            SourceConfig(),
            OneFileOpener(lambda: file),
            lambda i: i < 9,
        )
    )
    assert [(item.key, item.index) for item in items] == [("9", 9)]
    assert file.amount < 600_000


@pytest.mark.parametrize("compress", [False, True])
def test_a_skip_that_ends_within_a_row_still_finds_its_image(compress: bool) -> None:
    """The image stands before the text that tells how many samples the row has."""
    turns = [{"from": role, "value": f"{role}{n}"} for n in range(3) for role in ("human", "gpt")]
    data = raw_tar(
        [
            ("a.jpg", IMAGE),
            ("a.json", json.dumps({"conversations": turns}).encode()),
            ("b.jpg", encoded(2)),
            ("b.txt", b"t"),
        ]
    )
    data = gzip.compress(data) if compress else data
    whole = read_tar(data, SourceConfig(turns="each"))
    shard = Shard("t", "t", len(data), "e", "webdataset")
    opener = OneFileOpener(lambda: io.BytesIO(data))
    assert [item.key for item in whole] == ["a#0", "a#1", "a#2", "b"]
    for first in range(5):
        kept = list(read_shard(shard, SourceConfig(turns="each"), opener, lambda index, first=first: index < first))
        assert kept == whole[first:]
