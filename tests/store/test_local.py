"""What only a folder does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trio_ray.config import S3Config
from trio_ray.errors import AccessRefused, StoreError
from trio_ray.store.local import LocalStore
from trio_ray.store.opening import open_store


def test_a_folder_below_a_file_cannot_be_written_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"file/cache/.*cannot be written: .*") as caught:
        open_store(str(tmp_path / "file" / "cache"), S3Config()).check_writable()
    assert "\n" not in str(caught.value)


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Root may write everywhere, so a test of permissions needs another user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_permission_is_refused_for_writing_and_reading(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    with as_ordinary_user():
        with pytest.raises(AccessRefused, match="check the owner and mode of the folder"):
            open_store(str(closed / "cache"), S3Config()).check_writable()
        with pytest.raises(AccessRefused, match="check the owner and mode"):
            open_store(str(closed), S3Config()).read("a")


def test_temporaries_of_dead_writers_are_no_objects(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.writer("data/x").write(b"half")
    assert list(store.list()) == []
    assert [left.name.startswith("data/.trio-ray-tmp-") for left in store.list_unfinished()] == [True]


def test_paths_file_uris_and_the_home_folder_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for uri, folder in [
        ("cache", tmp_path / "cache"),
        (f"file://{tmp_path}/x", tmp_path / "x"),
        ("~/y", tmp_path / "home" / "y"),
    ]:
        store = open_store(uri, S3Config())
        store.put("a", b"1")
        assert store.uri == str(folder)
        assert (folder / "a").read_bytes() == b"1"
