"""JSONL files and the images that they name."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.source.corpus import FailingFile, LocalOpener, OneFileOpener, encoded, read_file, reasons
from trio_ray.config import SourceConfig
from trio_ray.errors import StoreError
from trio_ray.source import json_records, text_lines
from trio_ray.source.reader import SHARD_KEY, read_shard
from trio_ray.source.sample import BadSample, Reason, Sample, Shard, Turn
from trio_ray.source.shards import split_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with ten images under `img/`."""
    (tmp_path / "img").mkdir()
    for number in range(10):
        (tmp_path / "img" / f"{number}.jpg").write_bytes(encoded(number))
    return tmp_path


def write(folder: Path, *records: object, ending: bytes = b"\n") -> Path:
    """Lines given as bytes are stored as they are."""
    path = folder / "data.jsonl"
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"\n".join(lines) + ending)
    return path


def test_a_llava_question_file_needs_no_settings(folder: Path) -> None:
    path = write(folder, {"question_id": 11, "image": "img/3.jpg", "text": "What?", "category": "conv"})
    assert read_file(path) == [Sample("11", 0, (encoded(3),), (Turn("user", "What?"),), None)]


def test_a_llava_conversation_file_needs_no_settings(folder: Path) -> None:
    talk = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    path = write(folder, {"id": "x/7", "image": "img/3.jpg", "conversations": talk})
    assert read_file(path) == [Sample("x/7", 0, (encoded(3),), (Turn("user", "<image>\nq"),), "a")]


def test_several_images_and_a_root_of_their_own(folder: Path) -> None:
    path = write(folder, {"image": ["1.jpg", "2.jpg"], "question": "<image> or <image>?"})
    (item,) = read_file(path, SourceConfig(image_root=str(folder / "img")))
    assert item == Sample("@0", 0, (encoded(1), encoded(2)), (Turn("user", "<image> or <image>?"),), None)


def test_the_settings_choose_image_and_key(folder: Path) -> None:
    path = write(folder, {"file": "img/1.jpg", "uid": 5, "id": 6, "text": "t"}, {"file": "img/1.jpg", "text": "t"})
    items = read_file(path, SourceConfig(image_column="file", key_column="uid"))
    assert [item.key for item in items] == ["5", "@1"]
    assert reasons(items) == [None, "text_malformed"]


def test_each_turn_shares_the_image_which_is_read_once(folder: Path) -> None:
    talk = [{"role": role, "content": f"{role}{n}"} for n in range(3) for role in ("user", "assistant")]
    path = write(folder, {"id": "a", "image": "img/3.jpg", "messages": talk})
    opener = LocalOpener()
    items = read_file(path, SourceConfig(turns="each"), opener)
    assert [item.key for item in items] == ["a#0", "a#1", "a#2"]
    assert len(opener.read_uris) == 1
    assert all(isinstance(item, Sample) and item.images == (encoded(3),) for item in items)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ({"image": "img/none.jpg", "text": "t"}, Reason.IMAGE_MISSING),
        ({"image": None, "text": "t"}, Reason.TEXT_ONLY),
        ({"text": "t"}, Reason.TEXT_ONLY),
        ({"text": "<image> t"}, Reason.IMAGE_MISSING),
        ({"image": [], "text": "t"}, Reason.TEXT_ONLY),
        ({"image": "", "text": "t"}, Reason.IMAGE_MISSING),
        ({"image": 5, "text": "t"}, Reason.IMAGE_MISSING),
        ({"image": "a\0b", "text": "t"}, Reason.IMAGE_MISSING),
        ({"image": "https://host/a.jpg", "text": "t"}, Reason.IMAGE_MISSING),
        ({"image": ["img/1.jpg", "img/none.jpg"], "text": "t"}, Reason.IMAGE_MISSING),
        ({"image": "empty.jpg", "text": "t"}, Reason.IMAGE_EMPTY),
        ({"image": "img/1.jpg"}, Reason.TEXT_MISSING),
        ({"image": "img/1.jpg", "text": ""}, Reason.TEXT_EMPTY),
        ({"image": ["img/1.jpg", "img/2.jpg"], "text": "<image> t"}, Reason.IMAGE_COUNT),
        (b'{"image": "img/1.jpg", "text": "caf\xe9"}', Reason.TEXT_NOT_UTF8),
        (b'{"image": "img/1.jpg", "text": "t"', Reason.TEXT_MALFORMED),
        (b'["img/1.jpg", "t"]', Reason.TEXT_MALFORMED),
        (b'{"image": "img/1.jpg", "text": "' + b"x" * 5000 + b'"}', Reason.TEXT_MALFORMED),
        ({"id": "before", "image": "img/1.jpg", "text": "t"}, Reason.DUPLICATE_KEY),
    ],
)
def test_a_bad_line_is_named_and_costs_no_other(
    folder: Path, line: object, wanted: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "MAX_RECORD_BYTES", 4000)
    monkeypatch.setattr(text_lines, "MAX_RECORD_BYTES", 4000)
    (folder / "empty.jpg").write_bytes(b"")
    good = {"image": "img/0.jpg", "text": "t"}
    items = read_file(write(folder, {**good, "id": "before"}, line, {**good, "id": "after"}))
    assert [item.index for item in items] == [0, 1, 2]
    assert reasons(items) == [None, wanted.value, None]
    assert items[2].key == "after"


def test_a_store_that_fails_is_not_a_missing_image(folder: Path) -> None:
    path = write(folder, {"image": "img/1.jpg", "text": "t"})
    with pytest.raises(StoreError, match="reset"):
        read_file(path, opener=LocalOpener(broken=[str(folder / "img/1.jpg")]))


def test_a_store_that_fails_within_the_file_is_not_its_end() -> None:
    data = b'{"text": "t", "image": "x"}\n' * 5
    opener = OneFileOpener(lambda: FailingFile(data, answers=3))
    with pytest.raises(StoreError):
        split_file("a.jsonl", len(data), "e", SourceConfig(), opener)


def test_blank_lines_a_byte_order_mark_and_a_last_line_without_newline_are_fine(folder: Path) -> None:
    record = json.dumps({"image": "img/1.jpg", "text": "t"}).encode()
    path = write(folder, b"\xef\xbb\xbf" + record, b"", b"  \r", record + b"\r", b"", record, ending=b"")
    items = read_file(path)
    assert [item.key for item in items] == ["@0", "@1", "@2"]
    assert reasons(items) == [None] * 3


def test_every_prefix_gives_a_prefix_of_the_samples_and_at_most_one_mark(folder: Path) -> None:
    path = write(folder, *({"image": f"img/{n}.jpg", "text": "grün"} for n in range(4)))
    data, whole = path.read_bytes(), read_file(path)
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        items = read_file(path)
        good = items[:-1] if items and items[-1].key == SHARD_KEY else items
        assert good == whole[: len(good)]
        assert reasons(items[len(good) :]) in ([], ["shard_truncated"])
        assert len(items) > len(good) or data[cut - 1 : cut + 1] in (b"}\n", b"\n{") or cut == 0


def test_runs_of_lines_give_what_the_whole_file_gives(folder: Path) -> None:
    """With blank lines between and a line longer than the limit, which count as none and as one row."""
    records: list[object] = [{"image": f"img/{n % 10}.jpg", "text": f"t{n}"} for n in range(23)]
    records[5:5] = [b"", b"   "]
    path = write(folder, *records)
    whole = read_file(path)
    split = read_file(path, SourceConfig(rows_per_shard=4))
    assert len(whole) == 23
    assert [(item.key, getattr(item, "turns", None)) for item in split] == [
        (item.key, getattr(item, "turns", None)) for item in whole
    ]


def test_a_run_starts_where_its_lines_are_and_reads_nothing_before(folder: Path) -> None:
    path = write(folder, *({"image": "img/1.jpg", "text": f"t{n}"} for n in range(1000)))
    shards = split_file(str(path), path.stat().st_size, "e", SourceConfig(rows_per_shard=100), LocalOpener())
    assert path.read_bytes()[shards[9].offset :].startswith(b'{"image": "img/1.jpg", "text": "t900"}')
    (first, *_) = read_shard(shards[9], SourceConfig(), LocalOpener())
    assert (first.key, first.index) == ("@900", 0)


def test_skipped_lines_read_no_images_but_keep_their_keys(folder: Path) -> None:
    path = write(folder, *({"id": f"k{n % 3}", "image": f"img/{n}.jpg", "text": "t"} for n in range(5)))
    (shard,) = split_file(str(path), path.stat().st_size, "e", SourceConfig(), LocalOpener())
    opener = LocalOpener()
    items = list(read_shard(shard, SourceConfig(), opener, lambda index: index in (0, 1)))
    assert [(item.index, item.key) for item in items] == [(2, "k2"), (3, "k0"), (4, "k1")]
    assert reasons(items) == [None, "duplicate_key", "duplicate_key"]
    assert opener.read_uris == [str(folder / "img/2.jpg")]


def test_lines_that_went_missing_since_the_split_are_damage(folder: Path) -> None:
    path = write(folder, *({"image": "img/1.jpg", "text": "t"} for _ in range(6)))
    shards = split_file(str(path), path.stat().st_size, "e", SourceConfig(rows_per_shard=3), LocalOpener())
    path.write_bytes(b"\n".join(path.read_bytes().splitlines()[:4]) + b"\n")
    items = list(read_shard(shards[1], SourceConfig(), LocalOpener()))
    assert reasons(items) == [None, "shard_truncated"]


def test_an_endless_line_is_not_read_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MAX_RECORD_BYTES", 1000)
    sizes = [len(line.data) for line in text_lines.lines(io.BytesIO(b"x" * 10_000 + b"\n{}\n"))]
    assert sizes == [1001, 3]


def test_a_hand_made_shard_without_rows_is_the_whole_file(folder: Path) -> None:
    path = write(folder, *({"image": "img/1.jpg", "text": "t"} for _ in range(3)))
    items = list(read_shard(Shard("s", str(path), 1, "e", "jsonl"), SourceConfig(), LocalOpener()))
    assert not any(isinstance(item, BadSample) for item in items)
    assert len(items) == 3
