"""Input patterns and opening what they name, on local paths and on S3."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from tests.seaweed import S3Server
from trio_ray.config import S3Config
from trio_ray.errors import AccessRefused, ConfigError, ObjectMissing, StoreError
from trio_ray.lab.scale.requests import counted_requests
from trio_ray.store import inputs
from trio_ray.store.inputs import StoreOpener, expand_inputs
from trio_ray.store.opening import open_store

NAMES = [
    "a/train-00000.tar",
    "a/train-00001.tar",
    "a/train-00002.tar",
    "a/deep/er/x.tar",
    "b/odd[1]{x}.tar",
    "b/y.parquet",
]


@pytest.fixture(params=["local", "s3"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, S3Config]:
    """The root URI of some files, and how to reach them."""
    if request.param == "local":
        root, config = str(tmp_path / "corpus"), S3Config()
    else:
        server = request.getfixturevalue("s3_environment")
        root, config = f"{server.fresh_uri()}/corpus", server.config
    store = open_store(root, config)
    for name in NAMES:
        store.put(name, name.encode())
    return root, config


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/train-00001.tar", ["a/train-00001.tar"]),
        ("a/*.tar", NAMES[:3]),
        ("a/train-0000{0..2}.tar", NAMES[:3]),
        ("a/train-{00002..00001}.tar", ["a/train-00002.tar", "a/train-00001.tar"]),
        ("{a,b}/*.{tar,parquet}", None),
        ("a/train-0000[12].tar", NAMES[1:3]),
        ("a/train-0000?.tar", NAMES[:3]),
        ("a/**/*.tar", ["a/deep/er/x.tar", *NAMES[:3]]),
        ("*/*.parquet", ["b/y.parquet"]),
        ("b/odd[1]{x}.tar", ["b/odd[1]{x}.tar"]),
    ],
)
def test_patterns_name_files_in_a_fixed_order(
    corpus: tuple[str, S3Config], pattern: str, expected: list[str] | None
) -> None:
    root, config = corpus
    if expected is None:
        with pytest.raises(ConfigError, match=r"input: .*a/\*\.parquet.* matches no file"):
            expand_inputs([f"{root}/{pattern}"], config)
        return
    files = expand_inputs([f"{root}/{pattern}"], config)
    assert [file.uri for file in files] == [f"{root}/{name}" for name in expected]
    assert [file.size for file in files] == [len(name) for name in expected]
    store = open_store(root, config)
    assert [file.etag for file in files] == [store.stat(name).etag for name in expected]


def test_a_file_named_twice_counts_once_at_its_first_place(corpus: tuple[str, S3Config]) -> None:
    root, config = corpus
    files = expand_inputs([f"{root}/a/train-00001.tar", f"{root}/a/*.tar", f"{root}/a/train-00000.tar"], config)
    assert [file.uri for file in files] == [f"{root}/{NAMES[number]}" for number in (1, 0, 2)]


def test_a_named_file_that_is_missing_is_returned_as_unreadable(corpus: tuple[str, S3Config]) -> None:
    root, config = corpus
    files = expand_inputs([f"{root}/a/train-{{00002..00004}}.tar", "s3:///bad"], config)
    assert [(file.uri, file.readable) for file in files] == [
        (f"{root}/a/train-00002.tar", True),
        (f"{root}/a/train-00003.tar", False),
        (f"{root}/a/train-00004.tar", False),
        ("s3:///bad", False),
    ]
    assert {(file.size, file.etag) for file in files if not file.readable} == {(-1, "")}
    assert all(file.uri in file.why for file in files if not file.readable), "each reason is kept"
    assert files[-1].why == "s3:///bad: names no bucket; write s3://bucket/prefix"


def test_a_folder_is_refused_with_what_to_write_instead(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet", "README.md"):
        (tmp_path / name).write_bytes(b"")
    for given in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}"):
        with pytest.raises(ConfigError, match=r"is a folder; name its files, such as '.*/\*\.parquet'") as caught:
            expand_inputs([given, f"{tmp_path}/a.parquet"], S3Config())
        assert caught.value.field == "input"


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], "names no file"),
        (["{root}/nothing/*.tar"], "matches no file"),
        (["{root}/gone.tar", "{root}/gone2.tar"], r"not one of 2 files can be read; the first: .*gone\.tar"),
        (["{root}/{{1..3"], "has unbalanced braces"),
    ],
)
def test_input_that_names_nothing_stops_the_job(
    corpus: tuple[str, S3Config], patterns: list[str], message: str
) -> None:
    root, config = corpus
    with pytest.raises(ConfigError, match=message) as caught:
        expand_inputs([pattern.format(root=root) for pattern in patterns], config)
    assert caught.value.field == "input"


def test_wrong_credentials_stop_the_job(corpus: tuple[str, S3Config], monkeypatch: pytest.MonkeyPatch) -> None:
    root, config = corpus
    if not root.startswith("s3://"):
        return
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-xyz")
    for pattern in ("a/*.tar", "a/train-00000.tar"):
        with pytest.raises(ConfigError, match=r"^input: .*S3 refused") as caught:
            expand_inputs([f"{root}/{pattern}"], config)
        assert "wrong-secret-xyz" not in str(caught.value)


def test_the_opener_reads_and_seeks_and_survives_pickling(corpus: tuple[str, S3Config]) -> None:
    root, config = corpus
    opener = pickle.loads(pickle.dumps(StoreOpener(config)))
    for name in NAMES:
        assert opener.read(f"{root}/{name}") == name.encode()
        with opener.open(f"{root}/{name}") as file:
            file.seek(2)
            assert file.read() == name.encode()[2:]


def test_the_opener_raises_typed_errors_only(corpus: tuple[str, S3Config]) -> None:
    root, config = corpus
    opener = StoreOpener(config)
    for ask in (opener.open, opener.read):
        with pytest.raises(ObjectMissing, match="gone"):
            ask(f"{root}/gone.tar")
        with pytest.raises(StoreError):
            ask("ftp://host/x")
    if not root.startswith("s3://"):
        for ask in (opener.open, opener.read):
            with pytest.raises(ObjectMissing):
                ask(f"{root}/a")
    else:
        with pytest.raises((AccessRefused, StoreError)):
            opener.read("s3://no-such-bucket-here/x")


def test_relative_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"1")
    (tmp_path / "link.tar").symlink_to(tmp_path / "x.tar")
    for pattern in ("x.tar", "x*.tar", f"file://{tmp_path}/x.tar", "./x.tar"):
        assert [file.uri for file in expand_inputs([pattern], S3Config())] == [str(tmp_path / "x.tar")]
    assert [file.size for file in expand_inputs(["link.tar"], S3Config())] == [1]


def test_a_wildcard_in_a_buckets_name_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"input: 's3://buck\*t/a\.tar' has a wildcard in the bucket's name"):
        expand_inputs(["s3://buck*t/a.tar"], S3Config())


def test_a_name_that_is_not_utf8_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.tar")).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"input: .*caf\\udce9\.tar.* is not UTF-8.*rename"):
        expand_inputs([str(tmp_path / "*.tar")], S3Config())


def test_a_long_range_of_s3_objects_is_listed(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for each of a hundred thousand shards would take minutes. What the listing lacks is asked for alone."""
    monkeypatch.setattr(inputs, "_WORTH_LISTING", 4)
    root = s3_environment.fresh_uri()
    store = open_store(root, s3_environment.config)
    for number in (0, 1, 2, 4):
        store.put(f"a/{number:05d}.tar", b"x" * (number + 1))
    with counted_requests() as requests:
        files = expand_inputs([f"{root}/a/{{00000..00004}}.tar"], s3_environment.config)
    assert [file.size for file in files] == [1, 2, 3, -1, 5]
    assert files[0].etag == store.stat("a/00000.tar").etag
    assert requests.lists == 1
    assert [name.rpartition("/")[2] for name in requests.names if name.endswith("3.tar")] == ["00003.tar"]
    assert len(requests.names) <= 2, "the pattern itself, and the object that is not there"
