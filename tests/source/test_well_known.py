"""The settings that docs/formats.md gives for well-known data sets read small made-up files of their layouts."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.source.corpus import encoded, read_file, tar_of
from trio_ray.config import SourceConfig, load_config
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.evaluate.question import Question
from trio_ray.evaluate.question_files import question_source, read_questions
from trio_ray.evaluate.scoring.multiple_choice import MultipleChoice
from trio_ray.source.sample import BadSample, Sample

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
SETTINGS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load(block)
    for name, block in re.findall(r"^### ([^\n]+)\n(?:(?!^###).)*?```yaml\n(.*?)```", PAGE.read_text(), re.M | re.S)
}
SHORT = "Answer with the option's letter from the given choices directly."

Made = tuple[Path, list[tuple[str, str, str | None, int]]]
"""A file, and the (key, last turn, answer, images) of each of its samples."""


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def image(number: int) -> dict[str, object]:
    return {"bytes": encoded(number), "path": f"{number}.jpg"}


def parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def dump(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(number))


def llava_665k(folder: Path) -> Made:
    images(folder, "images/coco/train2017/1.jpg")
    one = {"id": "000000033471", "image": "coco/train2017/1.jpg"}
    rows = [
        {**one, "conversations": talk("<image>\nq0", "a0", "q1", "a1")},
        {"id": "wgByO4Y_0", "model": "", "conversations": talk("only text", "yes")},
        {**one, "conversations": talk("r0\n<image>", "b0")},
    ]
    stem = "llava_v1_5_mix665k"
    wanted = [
        (f"{stem}@0#0", "<image>\nq0", "a0", 1),
        (f"{stem}@0#1", "q1", "a1", 1),
        (f"{stem}@2#0", "r0\n<image>", "b0", 1),
    ]
    return dump(folder / f"{stem}.json", rows), wanted


def llava_next(folder: Path) -> Made:
    rows = [
        {"id": "x", "image": image(0), "conversations": talk("<image>\nq", "a"), "data_source": "s"},
        {"id": "x", "image": None, "conversations": talk("only text", "a"), "data_source": "s"},
        {"id": "x", "image": image(1), "conversations": talk("q\n<image>", "b"), "data_source": "s"},
    ]
    stem = "train-00000-of-00002"
    path = parquet(folder / f"{stem}.parquet", rows)
    return path, [(f"{stem}@0#0", "<image>\nq", "a", 1), (f"{stem}@2#0", "q\n<image>", "b", 1)]


def share_gpt4v(folder: Path) -> Made:
    images(folder, "images/sam/images/sa_1.jpg")
    rows = [
        {"id": "sa_1", "image": "sam/images/sa_1.jpg", "conversations": talk("<image>\nDescribe.", "It is ...")}
    ] * 2
    path = dump(folder / "sharegpt4v.json", rows)
    return path, [(f"sharegpt4v@{n}", "<image>\nDescribe.", "It is ...", 1) for n in range(2)]


def the_cauldron(folder: Path) -> Made:
    texts = [{"user": f"q{n}", "assistant": f"a{n}", "source": "VQA"} for n in range(2)]
    rows = [{"images": [image(0)], "texts": texts}, {"images": [image(1), image(2)], "texts": texts[:1]}]
    path = parquet(folder / "train-00000.parquet", rows)
    stem = "train-00000"
    return path, [(f"{stem}@0#0", "q0", "a0", 1), (f"{stem}@0#1", "q1", "a1", 1), (f"{stem}@1#0", "q0", "a0", 2)]


def mme(folder: Path) -> Made:
    rows = [
        {"question_id": "color/1.png", "image": image(0), "question": f"q{n}", "answer": answer, "category": "color"}
        for n, answer in enumerate(("Yes", "No"))
    ]
    return parquet(folder / "test.parquet", rows), [("test@0", "q0", "Yes", 1), ("test@1", "q1", "No", 1)]


def pope(folder: Path) -> Made:
    rows = [
        {"id": str(n), "question_id": "1", "question": "Is there a dog?", "answer": "no", "image_source": "COCO_1",
         "image": image(n), "category": category}
        for n, category in enumerate(("random", "popular"))
    ]  # fmt: skip
    return parquet(folder / "test.parquet", rows), [(str(n), "Is there a dog?", "no", 1) for n in range(2)]


def gqa(folder: Path) -> Made:
    images(folder, "images/n161313.jpg")
    question = {"imageId": "n161313", "question": "Is it?", "answer": "no", "types": {"structural": "verify"}}
    return dump(folder / "testdev.json", {"201307251": question}), [("201307251", "Is it?", "no", 1)]


def vqa2(folder: Path) -> Made:
    images(folder, "val2014/COCO_val2014_000000262148.jpg")
    content = {
        "info": {"year": 2017, "version": "2.0"}, "task_type": "Open-Ended", "license": {"name": "CC"},
        "questions": [{"image_id": 262148, "question": "Where?", "question_id": 262148000}],
    }  # fmt: skip
    return dump(folder / "v2_OpenEnded_mscoco_val2014_questions.json", content), [("262148000", "Where?", None, 1)]


def text_vqa(folder: Path) -> Made:
    images(folder, "train_images/003a8ae2ef43b901.jpg")
    record = {
        "image_id": "003a8ae2ef43b901",
        "question": "Which brand?",
        "question_id": 34602,
        "answers": ["dakota"] * 10,
    }
    content = {"dataset_type": "val", "dataset_version": "0.5.1", "data": [record]}
    return dump(folder / "TextVQA_0.5.1_val.json", content), [("34602", "Which brand?", "dakota", 1)]


def science_qa(folder: Path) -> Made:
    shared = {"choices": ["emu", "owl"], "answer": 1, "lecture": "", "subject": "natural science"}
    rows = [
        {**shared, "image": image(0), "question": "Which bird?", "hint": "Look."},
        {**shared, "image": None, "question": "No picture", "hint": ""},
        {**shared, "image": image(1), "question": "And here?", "hint": ""},
    ]
    options = f"A. emu\nB. owl\n{SHORT}"
    wanted = [("test@0", f"Look.\nWhich bird?\n{options}", "1", 1), ("test@2", f"And here?\n{options}", "1", 1)]
    return parquet(folder / "test.parquet", rows), wanted


def mmbench(folder: Path) -> Made:
    row = {
        "index": 241, "question": "Which?", "hint": "nan", "answer": "B", "A": "red", "B": "blue", "C": "green",
        "D": "nan", "category": "color", "image": image(0), "L2-category": "x",
    }  # fmt: skip
    return parquet(folder / "dev.parquet", [row]), [("241", f"Which?\nA. red\nB. blue\nC. green\n{SHORT}", "B", 1)]


def test_mmbench_as_tsv_turned_into_parquet_is_read_with_its_settings(tmp_path: Path) -> None:
    """The image stays base64, as pandas leaves it."""
    path, wanted = mmbench(tmp_path)
    (row,) = pq.read_table(path).to_pylist()
    row["image"] = base64.b64encode(row["image"]["bytes"]).decode()
    parquet(path, [{name: None if value == "nan" else value for name, value in row.items()}])
    (found,) = read_file(path, load_config(values={"input": ["x"], **SETTINGS["MMBench"]}).source)
    assert isinstance(found, Sample)
    assert (found.key, found.turns[-1].text, found.images) == (wanted[0][0], wanted[0][1], (encoded(0),))


def mmmu(folder: Path) -> Made:
    pictures: dict[str, object] = {f"image_{n}": image(n) if n < 3 else None for n in range(1, 8)}
    row = {
        "id": "validation_Accounting_1", "question": "<image 1> Compare with <image 2>.", "options": "['$6', '$7']",
        "explanation": "", **pictures, "answer": "B", "question_type": "multiple-choice", "subfield": "x",
    }  # fmt: skip
    text = f"<image> Compare with <image>.\nA. $6\nB. $7\n{SHORT}"
    return parquet(folder / "validation.parquet", [row]), [("validation_Accounting_1", text, "B", 2)]


def img2dataset(folder: Path) -> Made:
    path = folder / "00000.tar"
    members = [
        {"__key__": f"{n:09d}", "jpg": encoded(n), "txt": text, "json": {"caption": text.decode(), "url": "http://x"}}
        for n, text in enumerate((b"a cat", b""))
    ]
    path.write_bytes(tar_of(members))
    return path, [("000000000", "a cat", None, 1), ("000000001", "", None, 1)]


def class_labelled(folder: Path) -> Made:
    path = folder / "imagenet-000000.tar"
    path.write_bytes(tar_of([{"__key__": "n01440764_36", "jpg": encoded(0), "cls": b"281"}]))
    return path, [("n01440764_36", "", "281", 1)]


LAYOUTS: dict[str, Callable[[Path], Made]] = {
    "LLaVA-1.5 665k": llava_665k,
    "LLaVA-NeXT-Data": llava_next,
    "LLaVA-OneVision-Data": llava_next,
    "ShareGPT4V": share_gpt4v,
    "the_cauldron": the_cauldron,
    "MME": mme,
    "POPE": pope,
    "GQA": gqa,
    "VQAv2": vqa2,
    "TextVQA": text_vqa,
    "ScienceQA": science_qa,
    "MMBench": mmbench,
    "MMMU": mmmu,
    "img2dataset": img2dataset,
    "Class-labelled tars": class_labelled,
}


def settings(name: str, folder: Path) -> SourceConfig:
    """The page's settings, with its folders taken from where the files lie."""
    tree = {f"{section}.{key}": value for section, values in SETTINGS[name].items() for key, value in values.items()}
    if "source.image_root" in tree:
        tree["source.image_root"] = str(folder / tree["source.image_root"])
    return load_config(values=tree).source


def test_the_page_has_every_layout() -> None:
    assert list(SETTINGS) == list(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_settings_of_the_page_read_the_layout(name: str, tmp_path: Path) -> None:
    path, wanted = LAYOUTS[name](tmp_path)
    items = read_file(path, settings(name, tmp_path))
    assert all(item.silent for item in items if isinstance(item, BadSample)), items
    found = [(one.key, one.turns[-1].text, one.answer, len(one.images)) for one in items if isinstance(one, Sample)]
    assert found == wanted


@pytest.mark.parametrize("name", ["ScienceQA", "MMBench", "MMMU"])
def test_multiple_choice_is_scored_by_the_letter(name: str, tmp_path: Path) -> None:
    path, _ = LAYOUTS[name](tmp_path)
    identity = {"source": settings(name, tmp_path).model_dump(mode="json", exclude={"image_root", "allow_any_path"})}
    config = EvaluateConfig(input=(str(path),), scorer="multiple_choice")
    questions = list(read_questions(config, question_source(identity, config)))
    assert all(isinstance(one, Question) and one.truth is not None for one in questions)
    for question in questions:
        assert isinstance(question, Question)
        assert question.truth is not None
        assert SHORT in question.text
        assert [MultipleChoice().score(answer, question.truth) for answer in ("B", "A", "B.")] == [1.0, 0.0, 1.0]


def test_questions_whose_options_nobody_shows_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, _ = mmbench(tmp_path)
    config = EvaluateConfig(input=(str(path),), scorer="multiple_choice")
    source = SourceConfig(key_column="index").model_dump(mode="json", exclude={"image_root", "allow_any_path"})
    list(read_questions(config, question_source({"source": source}, config)))
    assert "text_template" in caplog.text
    caplog.clear()
    shown = config.model_copy(update={"questions": config.questions.model_copy(update={"text_template": "{options}"})})
    list(read_questions(shown, question_source({"source": source}, shown)))
    assert caplog.text == ""
