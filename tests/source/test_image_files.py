"""Where the images lie that a record names."""

from __future__ import annotations

import pytest

from trio_ray.source.image_files import folder_of, image_uri
from trio_ray.source.rejection import Rejected


@pytest.mark.parametrize(
    ("path", "root", "wanted"),
    [
        ("a/1.jpg", "/data/set", "/data/set/a/1.jpg"),
        ("1.jpg", "/", "/1.jpg"),
        ("1.jpg", ".", "./1.jpg"),
        ("../img/1.jpg", "/data/set", "/data/set/../img/1.jpg"),
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
    assert image_uri(path, root) == wanted


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/", "a\0b", "\ud83d.jpg", "x/" + "long" * 64, "http://host/1.jpg", "gs://bucket/1.jpg"],
)
def test_names_that_nothing_can_have_are_rejected(path: str) -> None:
    with pytest.raises(Rejected, match="image_missing"):
        image_uri(path, "/data")


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
