"""What is promised of samples in every format: which images belong to a prompt, and what a missing one is called."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.source.corpus import encoded, read_file, reasons
from trio_ray.config import JobConfig, SourceConfig, load_config
from trio_ray.errors import ConfigError
from trio_ray.source.sample import BadSample, Sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(number))
    return tmp_path


def read(folder: Path, record: dict[str, object], **settings: object) -> list[Sample | BadSample]:
    path = folder / "data.jsonl"
    path.write_text(json.dumps(record) + "\n")
    return read_file(path, SourceConfig(**settings))


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def shown(items: list[Sample | BadSample]) -> list[list[int] | str]:
    """The numbers of each sample's images, or its reason."""
    numbers = {encoded(number): number for number in range(4)}
    return [
        [numbers[image] for image in item.images] if isinstance(item, Sample) else item.reason.value for item in items
    ]


def test_of_a_conversation_with_one_image_a_turn_each_prompt_has_those_so_far(folder: Path) -> None:
    record = {"image": ["0.jpg", "1.jpg"], "conversations": talk("<image>\nq0", "a0", "<image>\nq1", "a1")}
    assert shown(read(folder, record)) == [[0]]
    assert shown(read(folder, record, turns="each")) == [[0], [0, 1]]


def test_a_prompt_before_the_first_image_is_text_only(folder: Path) -> None:
    record = {"image": ["0.jpg"], "conversations": talk("hello", "hi", "<image>\nq1", "a1")}
    assert shown(read(folder, record, turns="each")) == ["text_only", [0]]


def test_images_that_turns_carry_themselves_belong_to_them(folder: Path) -> None:
    data = base64.b64encode(encoded(2)).decode()
    turns = [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "0.jpg"}}, {"type": "text", "text": "q"}],
        },
        {"role": "assistant", "content": "a"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": f"data:image/jpeg;base64,{data}"},
                {"type": "image", "image": data},
                {"type": "text", "text": "r"},
            ],
        },
    ]
    assert shown(read(folder, {"messages": turns}, turns="each")) == [[0], [0, 2, 2]]


def test_a_turn_cannot_name_what_lies_outside(folder: Path) -> None:
    content = [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}, {"type": "text", "text": "q"}]
    assert shown(read(folder, {"messages": [{"role": "user", "content": content}]})) == ["image_outside"]


@pytest.mark.parametrize(
    ("text", "wanted", "prompt"),
    [
        ("<image 1> or <image 2>?", [0, 1], "<image> or <image>?"),
        ("<image 2> after <image 1>, <image 2>", [1, 0], "<image> after <image>, image 2"),
        ("<image_1><image2>", [0, 1], "<image><image>"),
        ("only <image 1>", "image_count", None),
        ("<image 1> <image 2> <image 3>", "image_count", None),
        ("no marker", [0, 1], "no marker"),
    ],
)
def test_numbered_markers_say_which_image_stands_where(
    folder: Path, text: str, wanted: object, prompt: str | None
) -> None:
    items = read(
        folder, {"image_1": "0.jpg", "image_2": "1.jpg", "image_10": None, "question": text}, image_column="image_*"
    )
    assert shown(items) == [wanted]
    if isinstance(items[0], Sample):
        assert items[0].turns[0].text == prompt


def test_columns_of_images_are_ordered_by_their_numbers(folder: Path) -> None:
    record = {"image_10": "3.jpg", "image_9": "2.jpg", "image_1": "1.jpg", "text": "t"}
    assert shown(read(folder, record, image_column="image_*")) == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("name", "record", "wanted"),
    [
        ("{imageId}.jpg", {"imageId": "2"}, [2]),
        ("{n:01d}.jpg", {"n": 2}, [2]),
        ("{n:01d}.jpg", {"n": "2"}, [2]),
        ("{n:01d}.jpg", {"n": 2.0}, [2]),
        ("{n:01d}.jpg", {"n": "two"}, "image_missing"),
        ("{n}.jpg", {}, "image_missing"),
        ("{n}.jpg", {"n": None}, "text_only"),
        ("{n}.jpg", {"n": "../x"}, "image_outside"),
    ],
)
def test_a_template_makes_the_images_name(folder: Path, name: str, record: dict[str, object], wanted: object) -> None:
    assert shown(read(folder, {**record, "question": "q"}, image_name=name)) == [wanted]


def test_rows_without_an_image_are_a_kind_of_their_own_that_can_be_passed_over(folder: Path) -> None:
    for record in ({"text": "t"}, {"image": None, "text": "t"}, {"image": [], "conversations": talk("q", "a")}):
        (item,) = read(folder, record)
        assert isinstance(item, BadSample)
        assert (item.reason, item.silent) == ("text_only", False)
        assert "source.text_only: skip" in item.detail
        (item,) = read(folder, record, text_only="skip")
        assert isinstance(item, BadSample)
        assert item.silent
    (item,) = read(folder, {"text": "<image> t"}, text_only="skip")
    assert isinstance(item, BadSample)
    assert (item.reason, item.silent) == ("image_missing", False)


def test_messages_name_the_fields_that_are_there_and_the_cure(folder: Path) -> None:
    (item,) = read(folder, {"picture": "0.jpg", "ask": "q", "n": 1})
    assert isinstance(item, BadSample)
    assert all(words in item.detail for words in ("picture, ask, n", "source.text_column"))
    (item,) = read(folder, {"picture": "0.jpg", "text": "q"})
    assert isinstance(item, BadSample)
    assert all(words in item.detail for words in ("picture, text", "source.image_column"))


def test_repeated_ids_suggest_the_setting_that_takes_file_and_row(folder: Path) -> None:
    path = folder / "twice.jsonl"
    path.write_text('{"id": "a", "image": "0.jpg", "text": "t"}\n' * 2)
    _, second = read_file(path)
    assert isinstance(second, BadSample)
    assert (second.reason, "source.keys: row" in second.detail) == ("duplicate_key", True)
    assert [item.key for item in read_file(path, SourceConfig(keys="row"))] == ["twice@0", "twice@1"]


def test_a_rows_number_never_collides_with_an_id(folder: Path) -> None:
    path = folder / "mixed.jsonl"
    rows = [{"id": "1"}, {}, {"id": "@1"}, {"id": 3}, {}]
    path.write_text("".join(json.dumps({**row, "image": "0.jpg", "text": "t"}) + "\n" for row in rows))
    items = read_file(path)
    assert reasons(items) == [None] * 5
    assert [item.key for item in items] == ["1", "@1", "@@1", "3", "@4"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.tar", "a.parquet"])
def test_a_file_of_zero_bytes_is_a_damaged_shard_in_every_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert reasons(read_file(tmp_path / name)) == ["shard_truncated"]


def test_scope_image_needs_no_text_unless_the_settings_say_so() -> None:
    assert not load_config(overrides=["cache.scope=image"]).source.needs_text
    assert load_config(overrides=["cache.scope=image", "source.text_required=true"]).source.needs_text
    assert JobConfig().source.needs_text


@pytest.mark.parametrize("template", ["no field", "{}", "{0}", "{a.b}", "{a[0]}", "{a", "{a!r"])
def test_a_template_that_cannot_be_filled_in_is_refused_at_once(template: str) -> None:
    with pytest.raises(ConfigError, match=r"source\.text_template"):
        load_config(overrides=[f"source.text_template={json.dumps(template)}"])
