"""What only a folder does."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
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


def test_paths_file_uris_and_the_home_folder_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A file system that is full after `size` bytes a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_typed_error_and_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with largest_file(1 << 16):
        for act in (
            lambda: store.put("big", bytes(1 << 18)),
            lambda: store.put("just-beyond", bytes((1 << 16) + 1)),
            lambda: store.create("commit", bytes(1 << 18)),
        ):
            with pytest.raises(StoreError, match="cannot be written: File too large"):
                act()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none to mount in a test; this is what such file systems answer."""

    def link(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError, match="has no hard links, which create-only commits need"):
        LocalStore(tmp_path).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_read_that_fails_is_the_stores_error_and_no_damage_of_the_file() -> None:
    """Else a stale mount would have the rest of a shard taken for damaged, and never read again."""
    with LocalStore("/proc/self").open("mem") as file:  # nothing is mapped at 0: an input/output error
        for read in (lambda: file.read(10), file.read, lambda: file.readinto(bytearray(10))):
            with pytest.raises(StoreError, match=r"/proc/self/mem: Input/output error"):
                read()


def test_a_create_whose_answer_was_lost_is_still_ours_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS asks again for a link that it has made, and is told that the name is taken."""
    store, link = LocalStore(tmp_path), os.link

    def lost(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lost)
        assert store.create("a", b"ours")
    assert not store.create("a", b"theirs")
    assert store.read("a") == b"ours"
