"""Names in a cache: made in one place, understood in the same."""

from __future__ import annotations

import pytest

from trio_ray.store.layout import (
    DataName,
    FileKind,
    commit_name,
    data_folder,
    data_name,
    failures_name,
    is_failures_name,
    is_shard_name,
    parse_commit_name,
    parse_data_name,
)

FOLDER = data_folder("a", 1)


@pytest.mark.parametrize("shard", ["a", "train-00000.tar", "x" * 200, "_a+b=c"])
@pytest.mark.parametrize("part", [0, 7, 99_999, 100_000, 123_456_789])
def test_every_name_that_is_made_is_understood(shard: str, part: int) -> None:
    kinds: tuple[FileKind, ...] = ("samples", "tar", "quarantine", "locators")
    for kind in kinds:
        assert parse_data_name(data_name(shard, part, "a1B2", kind)) == DataName(shard, part, "a1B2", kind)
    assert parse_commit_name(commit_name(shard, part)) == (shard, part)
    assert is_failures_name(failures_name("a1B2"))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "dataset.json",
        "commits/e/a/1.json",
        "commits/e/a/000001.json",
        "commits/e/a/00001.json.bak",
        "commits/e/a/b/00001.json",
        "commits/e/.a/00001.json",
        "commits/a/00001.json",
        "commits/0/a/00001.json",
        f"{FOLDER}00001.parquet",
        f"{FOLDER}00001-x.txt",
        f"{FOLDER}00001-x.tar\n",
        f"{FOLDER}00001-x-y.tar",
        f"{FOLDER}00002-x.tar",
        "data/a/00001-x.tar",
        "failures/a/b.json",
        "failures/a.JSON",
        "failures/a.b.json",
    ],
)
def test_other_names_are_not_understood(name: str) -> None:
    assert parse_commit_name(name) is None
    assert parse_data_name(name) is None
    assert not is_failures_name(name)


@pytest.mark.parametrize("shard", ["", ".hidden", "a/b", "..", "-a", "a b", "é", "x" * 201, "a\n"])
def test_unsafe_shard_names_are_refused(shard: str) -> None:
    assert not is_shard_name(shard)
    for make in (
        lambda: commit_name(shard, 0),
        lambda: data_name(shard, 0, "a", "tar"),
    ):
        with pytest.raises(ValueError, match="shard name"):
            make()


def test_unsafe_attempt_names_are_refused() -> None:
    for attempt in ("", "a-b", "a/b", "x" * 65):
        with pytest.raises(ValueError, match="attempt"):
            data_name("a", 0, attempt, "tar")
        with pytest.raises(ValueError, match="run id"):
            failures_name(attempt)
