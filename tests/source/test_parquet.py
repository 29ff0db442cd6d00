"""Parquet files, as the Hugging Face hub and others write them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.source.corpus import (
    FailingFile,
    LocalOpener,
    OneFileOpener,
    ReadCounting,
    encoded,
    read_file,
    reasons,
)
from trio_ray.config import SourceConfig
from trio_ray.errors import ConfigError, StoreError
from trio_ray.source import parquet
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import Sample, Shard, Turn
from trio_ray.source.shards import split_file


def write(folder: Path, columns: dict[str, object], **options: object) -> Path:
    path = folder / "data.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


def hub_images(count: int) -> list[dict[str, object]]:
    """Hugging Face's layout of an image column."""
    return [{"bytes": encoded(n), "path": f"{n}.jpg"} for n in range(count)]


def hub_file(folder: Path, rows: int = 10, **options: object) -> Path:
    return write(
        folder,
        {
            "image": hub_images(rows),
            "question": [f"q{n}" for n in range(rows)],
            "answer": [f"a{n}" for n in range(rows)],
            "question_id": list(range(100, 100 + rows)),
            "unused": [bytes(100_000)] * rows,
        },
        **options,
    )


def hub_samples(rows: range, start: int) -> list[Sample]:
    return [Sample(str(100 + n), n - start, (encoded(n),), (Turn("user", f"q{n}"),), f"a{n}") for n in rows]


@pytest.mark.parametrize("row_group_size", [1, 3, 100])
def test_the_hubs_layout_needs_no_settings(tmp_path: Path, row_group_size: int) -> None:
    assert read_file(hub_file(tmp_path, row_group_size=row_group_size)) == hub_samples(range(10), 0)


@pytest.mark.parametrize(
    ("row_group_size", "runs"),
    [
        (2, [(0, 4), (4, 8), (8, 10)]),
        (3, [(0, 3), (3, 6), (6, 10)]),
        (4, [(0, 4), (4, 8), (8, 10)]),
        (9, [(0, 4), (4, 8), (8, 10)]),
        (100, [(0, 4), (4, 8), (8, 10)]),
    ],
)
def test_runs_of_rows_give_what_the_whole_file_gives(
    tmp_path: Path, row_group_size: int, runs: list[tuple[int, int]]
) -> None:
    """A run ends where a row group does, unless the group is small and has more rows than a run."""
    path = hub_file(tmp_path, row_group_size=row_group_size)
    config = SourceConfig(rows_per_shard=4)
    shards = split_file(str(path), 1, "e", config, LocalOpener())
    assert [shard.rows for shard in shards] == runs
    for shard in shards:
        assert shard.rows is not None
        assert list(read_shard(shard, config, LocalOpener())) == hub_samples(range(*shard.rows), shard.rows[0])


def test_more_rows_than_are_decoded_at_a_time_stay_in_step(tmp_path: Path) -> None:
    assert read_file(hub_file(tmp_path, rows=600)) == hub_samples(range(600), 0)


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(lambda n: encoded(n), id="binary"),
        pytest.param(lambda n: f"img/{n}.jpg", id="path"),
        pytest.param(lambda n: {"bytes": None, "path": f"img/{n}.jpg"}, id="struct-with-path"),
        pytest.param(lambda n: [encoded(n)], id="list-of-binary"),
        pytest.param(lambda n: [{"bytes": encoded(n), "path": None}], id="list-of-structs"),
    ],
)
def test_images_in_every_form(tmp_path: Path, cell: object) -> None:
    (tmp_path / "img").mkdir()
    for number in range(3):
        (tmp_path / "img" / f"{number}.jpg").write_bytes(encoded(number))
    path = write(tmp_path, {"image": [cell(n) for n in range(3)], "text": ["t"] * 3})  # type: ignore[operator]
    items = read_file(path)
    assert [item.images for item in items if isinstance(item, Sample)] == [(encoded(n),) for n in range(3)]
    assert [item.key for item in items] == ["@0", "@1", "@2"]


def test_several_images_a_row_and_settings_for_the_columns(tmp_path: Path) -> None:
    pairs = [[{"bytes": encoded(n), "path": None}, {"bytes": encoded(n + 1), "path": None}] for n in range(2)]
    path = write(tmp_path, {"images": pairs, "ask": ["<image><image> q"] * 2, "uid": ["a", "b"], "gold": ["x", "y"]})
    config = SourceConfig(image_column="images", text_column="ask", key_column="uid", answer_column="gold")
    assert read_file(path, config) == [
        Sample(key, n, (encoded(n), encoded(n + 1)), (Turn("user", "<image><image> q"),), gold)
        for n, (key, gold) in enumerate((("a", "x"), ("b", "y")))
    ]


@pytest.mark.parametrize(
    ("field", "role", "text", "names"),
    [
        ("conversations", "from", "value", ("human", "gpt")),
        ("messages", "role", "content", ("user", "assistant")),
    ],
)
def test_columns_of_conversations(tmp_path: Path, field: str, role: str, text: str, names: tuple[str, str]) -> None:
    talk = [{role: names[n % 2], text: f"t{n}"} for n in range(4)]
    path = write(tmp_path, {"image": hub_images(1), "id": ["k"], field: [talk]})
    items = read_file(path, SourceConfig(turns="each"))
    assert [(item.key, item.turns[-1].text, item.answer) for item in items if isinstance(item, Sample)] == [
        ("k#0", "t0", "t1"),
        ("k#1", "t2", "t3"),
    ]


def test_bad_rows_are_named_and_cost_no_other(tmp_path: Path) -> None:
    image = {"bytes": encoded(0), "path": None}
    rows: list[tuple[str, object, object, str | None]] = [
        ("a", image, b"t", None),
        ("b", None, b"t", "text_only"),
        ("c", {"bytes": None, "path": None}, b"t", "image_missing"),
        ("d", {"bytes": None, "path": "gone.jpg"}, b"t", "image_missing"),
        ("e", {"bytes": b"", "path": "x.jpg"}, b"t", "image_empty"),
        ("f", image, None, "text_missing"),
        ("g", image, b" ", "text_empty"),
        ("h", image, b"caf\xe9", "text_not_utf8"),
        ("a", image, b"t", "duplicate_key"),
        ("j", image, b"<image><image>t", "image_count"),
        ("k", image, b"t", None),
    ]
    keys, images, texts, wanted = zip(*rows, strict=True)
    # A string column with bytes that are no UTF-8, as a careless writer leaves it.
    text = pa.array(texts, pa.binary()).view(pa.string())
    items = read_file(write(tmp_path, {"key": list(keys), "image": list(images), "text": text}))
    assert [item.index for item in items] == list(range(len(rows)))
    assert reasons(items) == list(wanted)


def test_an_image_path_that_is_not_utf8_is_a_missing_image(tmp_path: Path) -> None:
    paths = pa.array([b"caf\xe9.jpg"], pa.binary()).view(pa.string())
    assert reasons(read_file(write(tmp_path, {"image": paths, "text": ["t"]}))) == ["image_missing"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("image_column", "picture"), ("text_column", "ask"), ("answer_column", "gold"), ("key_column", "uid")],
)
def test_a_column_that_does_not_exist_stops_the_planning(tmp_path: Path, setting: str, value: str) -> None:
    path = hub_file(tmp_path)
    with pytest.raises(ConfigError, match=f"source.{setting}: .*{value}.*question_id"):
        split_file(str(path), 1, "e", SourceConfig(**{setting: value}), LocalOpener())


def test_a_file_without_any_prompt_column_stops_the_planning(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.text_column: .*image, label"):
        read_file(write(tmp_path, {"image": hub_images(1), "label": [3]}))


def test_every_cut_of_a_file_is_one_unit_that_says_why(tmp_path: Path) -> None:
    path = hub_file(tmp_path)
    data = path.read_bytes()
    for cut in (0, 3, 4, 11, 100, len(data) // 2, len(data) - 9, len(data) - 1):
        path.write_bytes(data[:cut])
        assert len(split_file(str(path), cut, "e", SourceConfig(rows_per_shard=2), LocalOpener())) == 1
        (item,) = read_file(path)
        assert item.index == 0
        assert reasons([item]) == ["shard_truncated" if cut == 0 or cut >= 4 else "shard_unreadable"]
    path.write_bytes(b"<html>" * 1000)
    assert reasons(read_file(path)) == ["shard_unreadable"]


def test_a_damaged_page_ends_the_unit_after_the_samples_before_it(tmp_path: Path) -> None:
    path = hub_file(
        tmp_path,
        row_group_size=2,
        write_page_checksum=True,
        write_statistics=False,  # they hold a copy of the image, ahead of the page
        use_dictionary=False,
        compression="NONE",
    )
    data = bytearray(path.read_bytes())
    data[data.index(encoded(6)) + 50] ^= 1
    path.write_bytes(data)
    items = read_file(path)
    assert items[:-1] == hub_samples(range(6), 0)
    assert (items[-1].index, reasons(items)[-1]) == (6, "shard_unreadable")


@pytest.mark.parametrize("place", range(40))
def test_flipped_bytes_never_raise(tmp_path: Path, place: int) -> None:
    path = hub_file(tmp_path, rows=3)
    data = bytearray(path.read_bytes())
    for step in range(3):
        data[(place * 7919 + step * 104729) % len(data)] ^= 1 << (place % 8)
    items = read_file(Path(path.with_name("damaged.parquet").write_bytes(data) and path.with_name("damaged.parquet")))
    assert [item.index for item in items] == list(range(len(items)))


@pytest.mark.parametrize("answers", range(12))
def test_a_store_that_fails_is_not_a_damaged_file(tmp_path: Path, answers: int) -> None:
    """Wherever in the footer or the pages it happens, the error comes through Arrow as it was raised."""
    data = hub_file(tmp_path, rows=40, row_group_size=4).read_bytes()
    opener = OneFileOpener(lambda: FailingFile(data, answers))
    with pytest.raises(StoreError, match="reset"):
        list(read_shard(Shard("s", "s.parquet", len(data), "e", "parquet"), SourceConfig(), opener))


def test_only_the_columns_and_row_groups_that_are_needed_are_read(tmp_path: Path) -> None:
    images = [{"bytes": bytes([n + 1]) * 200_000, "path": None} for n in range(8)]
    columns = {
        "image": images,
        "question": [f"q{n}" for n in range(8)],
        "unused": [bytes([n]) * 200_000 for n in range(8)],
    }
    data = write(tmp_path, columns, row_group_size=2, compression="NONE", use_dictionary=False).read_bytes()
    file = ReadCounting(data)
    shard = Shard("s", "s.parquet", len(data), "e", "parquet", (0, 8))
    items = list(read_shard(shard, SourceConfig(), OneFileOpener(lambda: file), lambda index: index < 6))
    assert [item.index for item in items] == [6, 7]
    assert file.amount < 600_000


def test_a_row_group_of_many_images_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows a shard should have: a group is read from its beginning, so that each cut reads it again."""
    monkeypatch.setattr(parquet, "_SMALL_GROUP_BYTES", 1 << 20)
    monkeypatch.setattr(parquet, "_READ_BYTES", 1 << 14)
    images = [{"bytes": bytes([n + 1]) * 50_000, "path": None} for n in range(80)]
    columns = {"image": images, "question": [f"q{n}" for n in range(80)]}
    data = write(tmp_path, columns, row_group_size=40, compression="NONE", use_dictionary=False).read_bytes()
    files: list[ReadCounting] = []
    config = SourceConfig(rows_per_shard=8)

    def counted() -> ReadCounting:
        files.append(ReadCounting(data))
        return files[-1]

    opener = OneFileOpener(counted)

    def read(shards: list[Shard]) -> float:
        """How often the file is read, in bytes, until all of these shards are."""
        files.clear()
        samples = []
        for shard in shards:
            samples += [item.images for item in read_shard(shard, config, opener) if isinstance(item, Sample)]
        assert samples == [(image["bytes"],) for image in images]
        return sum(file.amount for file in files) / len(data)

    shards = split_file("x.parquet", len(data), "e", config, opener)
    assert [shard.rows for shard in shards] == [(0, 40), (40, 80)]
    assert read(shards) < 1.1
    cut = [Shard(f"s{n}", "x.parquet", len(data), "e", "parquet", (n, n + 8)) for n in range(0, 80, 8)]
    assert read(cut) > 2.5


def test_rows_that_went_missing_since_the_split_are_damage(tmp_path: Path) -> None:
    path = hub_file(tmp_path, rows=4)
    shard = Shard("s", str(path), 1, "e", "parquet", (2, 9))
    assert reasons(read_shard(shard, SourceConfig(), LocalOpener())) == ["shard_truncated"]


def test_where_images_are_not_read_their_column_need_not_be_there(tmp_path: Path) -> None:
    path = write(tmp_path, {"text": ["t"] * 3})
    (shard,) = split_file(str(path), 1, "e", SourceConfig(), LocalOpener(), images=False)
    assert shard.rows == (0, 3)
    with pytest.raises(ConfigError, match=r"source\.text_column"):
        split_file(str(path), 1, "e", SourceConfig(text_column="ask"), LocalOpener(), images=False)


def test_a_column_that_is_there_twice_is_refused_where_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    cells = [pa.array([b"x"]), pa.array(["a"]), pa.array(["b"]), pa.array([1]), pa.array([2])]
    pq.write_table(pa.table(cells, names=["image", "question", "question", "note", "note"]), file)
    with pytest.raises(ConfigError, match=r"has 2 columns 'question'; rename all but one") as caught:
        split_file(str(file), 1, "", SourceConfig(), LocalOpener())
    assert caught.value.field == "input"
