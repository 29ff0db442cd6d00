"""Images that a record names or carries: where they may lie, and in which forms they come."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tests.source.corpus import encoded, read_file, reasons
from trio_ray.config import S3Config, SourceConfig
from trio_ray.source.image_files import ImagePlaces, folder_of, image_uri, read_images
from trio_ray.source.rejection import Rejected
from trio_ray.source.sample import Reason
from trio_ray.store.inputs import StoreOpener


@pytest.mark.parametrize(
    ("path", "root", "wanted"),
    [
        ("a/1.jpg", "/data/set", "/data/set/a/1.jpg"),
        ("1.jpg", "/", "/1.jpg"),
        ("1.jpg", ".", "1.jpg"),
        ("../img/1.jpg", "/data/set", "/data/img/1.jpg"),
        ("/else/1.jpg", "/data/set", "/else/1.jpg"),
        ("s3://other/1.jpg", "/data/set", "s3://other/1.jpg"),
        ("a/1.jpg", "s3://bucket", "s3://bucket/a/1.jpg"),
        ("a/1.jpg", "s3://bucket/set/", "s3://bucket/set/a/1.jpg"),
        ("../img/./1.jpg", "s3://bucket/set", "s3://bucket/img/1.jpg"),
        ("../../../1.jpg", "s3://bucket/set", "s3://bucket/1.jpg"),
        ("s3://other/1.jpg", "s3://bucket/set", "s3://other/1.jpg"),
    ],
)
def test_paths_are_taken_from_the_root_unless_they_are_whole(path: str, root: str, wanted: str) -> None:
    assert image_uri(path, ImagePlaces(root, (), 1000)) == wanted


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/", "a\0b", "\ud83d.jpg", "x/" + "long" * 64, "http://host/1.jpg", "gs://bucket/1.jpg"],
)
def test_names_that_nothing_can_have_are_rejected(path: str) -> None:
    with pytest.raises(Rejected, match="image_missing"):
        image_uri(path, ImagePlaces("/data", (), 1000))


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("s3://b/x/y.jsonl", "s3://b/x"),
        ("s3://b/y.jsonl", "s3://b"),
        ("/y.jsonl", "/"),
        ("y.jsonl", "."),
        ("x/y.jsonl", "x"),
    ],
)
def test_the_folder_of_a_file(uri: str, wanted: str) -> None:
    assert folder_of(uri) == wanted


def places(uri: str, **settings: object) -> ImagePlaces:
    return ImagePlaces.of(uri, SourceConfig(**settings))


@pytest.mark.parametrize(
    ("path", "uri", "settings"),
    [
        ("../../etc/passwd", "/data/set/a.jsonl", {}),
        ("/etc/passwd", "/data/set/a.jsonl", {}),
        ("/dev/zero", "/data/set/a.jsonl", {}),
        ("/data/settings/1.jpg", "/data/set/a.jsonl", {}),
        ("img/../../1.jpg", "/data/set/a.jsonl", {}),
        ("../1.jpg", "a.jsonl", {}),
        ("/etc/passwd", "a.jsonl", {}),
        ("s3://other/1.jpg", "/data/set/a.jsonl", {}),
        ("s3://other/1.jpg", "s3://bucket/set/a.jsonl", {}),
        ("s3://bucket/1.jpg", "s3://bucket/set/a.jsonl", {}),
        ("../1.jpg", "s3://bucket/set/a.jsonl", {}),
        ("s3://bucket2/1.jpg", "s3://bucket/a.jsonl", {}),
        ("/etc/passwd", "s3://bucket/set/a.jsonl", {}),
        ("/else/1.jpg", "/data/set/a.jsonl", {"image_root": "/img"}),
        ("../1.jpg", "/data/set/a.jsonl", {"image_root": "/img"}),
        ("//etc/passwd", "/data/set/a.jsonl", {"image_root": "/img"}),
    ],
)
def test_a_record_cannot_name_what_lies_outside(path: str, uri: str, settings: dict[str, object]) -> None:
    with pytest.raises(Rejected, match=r"source\.allow_any_path") as raised:
        image_uri(path, places(uri, **settings))
    assert raised.value.reason == Reason.IMAGE_OUTSIDE
    assert image_uri(path, places(uri, **settings, allow_any_path=True))


@pytest.mark.parametrize(
    ("path", "uri", "settings", "wanted"),
    [
        ("img/./x/../1.jpg", "/data/set/a.jsonl", {}, "/data/set/img/1.jpg"),
        ("/data/set/1.jpg", "/data/set/a.jsonl", {"image_root": "/img"}, "/data/set/1.jpg"),
        ("1.jpg", "/data/set/a.jsonl", {"image_root": "/img/"}, "/img/1.jpg"),
        ("1.jpg", "/data/set/a.jsonl", {"image_root": "s3://b"}, "s3://b/1.jpg"),
        ("s3://b/1.jpg", "/data/set/a.jsonl", {"image_root": "s3://b/"}, "s3://b/1.jpg"),
        ("1.jpg", "s3://b/a.jsonl", {}, "s3://b/1.jpg"),
        ("1.jpg", "/a.jsonl", {}, "/1.jpg"),
        ("1.jpg", "a.jsonl", {}, "1.jpg"),
    ],
)
def test_what_lies_inside_is_found(path: str, uri: str, settings: dict[str, object], wanted: str) -> None:
    assert image_uri(path, places(uri, **settings)) == wanted


def read(cell: object, folder: Path, **settings: object) -> tuple[bytes, ...]:
    return read_images(cell, places(str(folder / "a.jsonl"), **settings), StoreOpener(S3Config()))


def test_special_files_and_large_ones_are_not_read(tmp_path: Path) -> None:
    """A pipe that nobody writes to would wait forever, a device would never end."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "large.jpg").write_bytes(bytes(2001))
    cases = [("pipe.jpg", Reason.IMAGE_MISSING), ("/dev/zero", Reason.IMAGE_MISSING), ("/", Reason.IMAGE_MISSING)]
    cases += [("large.jpg", Reason.IMAGE_TOO_LARGE), (bytes(2001), Reason.IMAGE_TOO_LARGE)]
    for cell, reason in cases:
        with pytest.raises(Rejected) as raised:
            read(cell, tmp_path, allow_any_path=True, max_image_bytes=2000)
        assert raised.value.reason == reason
    assert read("large.jpg", tmp_path, max_image_bytes=2001) == (bytes(2001),)


IMAGE = encoded(1, kind="PNG")
TEXT = base64.b64encode(IMAGE).decode()


@pytest.mark.parametrize(
    "cell",
    [
        IMAGE,
        TEXT,
        base64.encodebytes(IMAGE).decode(),
        f"data:image/png;base64,{TEXT}",
        {"bytes": IMAGE, "path": "gone.png"},
        {"bytes": TEXT, "path": None},
        {"url": f"data:image/png;base64,{TEXT}"},
        {"image_url": {"url": f"data:image/png;base64,{TEXT}"}},
        [IMAGE],
        [None, {"bytes": IMAGE}, None],
    ],
)
def test_an_image_comes_in_many_forms(cell: object, tmp_path: Path) -> None:
    assert read(cell, tmp_path) == (IMAGE,)


def test_what_is_wrong_with_an_image_is_told_in_a_bounded_sentence(tmp_path: Path) -> None:
    cases: list[tuple[object, Reason]] = [
        (f"data:image/png;base64,{TEXT[:-30]}!{TEXT[-30:]}", Reason.IMAGE_CORRUPT),
        ("data:image/png;base64", Reason.IMAGE_CORRUPT),
        ("https://host/" + "x" * 5000, Reason.IMAGE_MISSING),
        ("x" * 100_000, Reason.IMAGE_MISSING),
        ("gone/" * 500 + "1.jpg", Reason.IMAGE_MISSING),
        ({"height": 3, "width": "x" * 1000}, Reason.IMAGE_MISSING),
        ([[b"nested" * 1000]], Reason.IMAGE_MISSING),
        ({"image": {"image": {"image": {"image": IMAGE}}}}, Reason.IMAGE_MISSING),
    ]
    for cell, reason in cases:
        with pytest.raises(Rejected) as raised:
            read(cell, tmp_path)
        assert raised.value.reason == reason, cell
        assert len(str(raised.value)) < 700


def test_an_image_in_the_record_is_never_quoted(tmp_path: Path) -> None:
    """Not where its field is no text either."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": {"image": "' + TEXT * 50 + '"}}\n{"question": "", "image": "' + TEXT * 50 + '"}\n')
    items = read_file(path)
    assert reasons(items) == ["text_malformed", "text_empty"]
    assert all(TEXT[:30] not in getattr(item, "detail", "") for item in items)
