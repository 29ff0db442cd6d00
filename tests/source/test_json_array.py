"""`.json` files: one array, or an object with the records in it, read as a stream."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import pytest

from tests.source.corpus import LocalOpener, ReadCounting, encoded, read_file, reasons
from trio_ray.config import SourceConfig
from trio_ray.errors import ConfigError
from trio_ray.source import json_array
from trio_ray.source.json_array import array_records
from trio_ray.source.reader import SHARD_KEY, read_shard
from trio_ray.source.sample import Sample
from trio_ray.source.shards import split_file

TRICKY = [
    {"id": "a", "text": 'brackets ] } , in "text" \\ and grün', "n": [1, {"x": []}]},
    {"id": "b", "text": "\u2028 日本語", "nested": {"deep": [[["]"]]]}},
    {"id": "c", "text": "plain", "number": -1.5e10},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "1.jpg").write_bytes(encoded(1))
    return tmp_path


def write(folder: Path, content: object, **options: object) -> Path:
    path = folder / "data.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, **options), encoding="utf-8")
    return path


def records(count: int) -> list[dict[str, object]]:
    return [{"id": f"k{n}", "image": "1.jpg", "text": f"grün {n} ]"} for n in range(count)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("window", [7, 1 << 20])
def test_records_are_cut_where_they_end(
    indent: int | None, ascii_only: bool, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the window on the file ends, and whatever stands in the texts."""
    monkeypatch.setattr(json_array, "_CHUNK", window)
    data = json.dumps(TRICKY, indent=indent, ensure_ascii=ascii_only).encode()
    found = list(array_records(io.BytesIO(data), None))
    assert [json.loads(record.data) for record in found] == TRICKY
    assert all(data[record.offset :].startswith(record.data) for record in found)


@pytest.mark.parametrize(
    ("content", "setting"),
    [
        ({"info": {"x": [1, 2]}, "images": [{"id": 1}] * 3, "questions": TRICKY, "license": {}}, "questions"),
        ({record["id"]: record for record in TRICKY}, "*"),
        (TRICKY, None),
        ([], None),
    ],
)
def test_the_records_may_lie_in_a_field(content: object, setting: str | None) -> None:
    found = list(array_records(io.BytesIO(b"\xef\xbb\xbf " + json.dumps(content).encode()), setting))
    assert [json.loads(record.data) for record in found] == (TRICKY if content else [])


def test_the_name_of_a_record_is_its_key(folder: Path) -> None:
    path = write(folder, {"q1": {"image": "1.jpg", "question": "q"}, "q2": {"id": 5, "image": "1.jpg", "text": "t"}})
    assert [item.key for item in read_file(path, SourceConfig(records="*"))] == ["q1", "5"]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_of_records_asks_for_the_setting(folder: Path, indent: int | None) -> None:
    path = write(folder, {"info": {"year": 2017}, "questions": records(3)}, indent=indent)
    with pytest.raises(ConfigError, match=r"source\.records: .*info, questions"):
        read_file(path)
    assert reasons(read_file(path, SourceConfig(records="questions"))) == [None] * 3
    assert reasons(read_file(path, SourceConfig(records="answers"))) == ["shard_unreadable"]


def test_one_object_a_line_is_read_as_such_whatever_the_ending(folder: Path) -> None:
    lines = "\n".join(map(json.dumps, records(3)))
    assert [item.key for item in read_file(write(folder, lines))] == ["k0", "k1", "k2"]
    assert [item.key for item in read_file(write(folder, json.dumps(records(1)[0])))] == ["k0"]


@pytest.mark.parametrize("rows", [0, 1, 8, 9])
def test_runs_of_records_give_what_the_whole_file_gives(folder: Path, rows: int) -> None:
    path = write(folder, records(rows), ensure_ascii=False)
    config = SourceConfig(rows_per_shard=4)
    shards = split_file(str(path), path.stat().st_size, "e", config, LocalOpener())
    assert [shard.rows for shard in shards] == [(n, min(n + 4, rows)) for n in range(0, max(rows, 1), 4)]
    assert [item.key for item in read_file(path, config)] == [f"k{n}" for n in range(rows)]


def test_a_run_reads_nothing_before_its_records(folder: Path) -> None:
    path = write(folder, records(4000))
    shards = split_file(str(path), path.stat().st_size, "e", SourceConfig(rows_per_shard=100), LocalOpener())
    file = ReadCounting(path.read_bytes())
    (first, *_) = array_records(file, None, shards[39].offset)
    assert json.loads(first.data)["id"] == "k3900"
    assert file.amount < path.stat().st_size / 20


@pytest.mark.parametrize("count", [4, 5])
def test_every_prefix_gives_a_prefix_of_the_samples_and_the_damage(folder: Path, count: int) -> None:
    """Also where the cut falls on the end of a run."""
    path = write(folder, records(count))
    data, whole = path.read_bytes(), [f"k{n}" for n in range(count)]
    config = SourceConfig(rows_per_shard=2)
    for cut in range(1, len(data)):
        path.write_bytes(data[:cut])
        items = read_file(path, config)
        assert reasons(items)[-1] == "shard_truncated"
        assert items[-1].key == SHARD_KEY
        assert [item.key for item in items[:-1]] == whole[: len(items) - 1]


@pytest.mark.parametrize("fault", ["{bad}", "x", "'a'", '{"a": }'])
def test_what_is_no_json_ends_the_file_after_the_samples_before_it(folder: Path, fault: str) -> None:
    good = json.dumps(records(1)[0])
    items = read_file(write(folder, f"[{good}, {fault}, {good}]"))
    assert (items[0].key, reasons(items)) == ("k0", [None, "shard_unreadable"])


def test_a_record_that_is_no_object_costs_no_other(folder: Path) -> None:
    items = read_file(write(folder, [records(1)[0], 7, records(2)[1]]))
    assert (reasons(items), [item.key for item in items]) == ([None, "text_malformed", None], ["k0", "@1", "k1"])


def test_an_array_of_any_length_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text("[" + ",".join(['{"text": "' + "x" * 1000 + '"}'] * 30_000) + "]")
    with path.open("rb") as file:
        tracemalloc.start()
        count = sum(1 for _ in array_records(file, None))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == 30_000
    assert peak < 8 << 20 < path.stat().st_size


def test_llavas_own_layout_needs_no_settings(folder: Path) -> None:
    talk = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    path = write(folder, [{"id": "000", "image": "1.jpg", "conversations": talk}, {"id": "t", "conversations": talk}])
    first, second = read_file(path)
    assert isinstance(first, Sample)
    assert (first.key, first.answer, reasons([second])) == ("000", "a", ["image_missing"])


def test_a_skipped_run_is_read_from_its_start(folder: Path) -> None:
    path = write(folder, records(6))
    shard = split_file(str(path), 1, "e", SourceConfig(rows_per_shard=3), LocalOpener())[1]
    items = list(read_shard(shard, SourceConfig(), LocalOpener(), lambda index: index < 2))
    assert [(item.index, item.key) for item in items] == [(2, "k5")]
