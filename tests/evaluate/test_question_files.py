"""Question files in the layouts that people have; their keys are those that precompute gives the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpora import noise, samples, write_jsonl, write_parquet, write_tar
from trio_ray.config import S3Config, SourceConfig, parse_section
from trio_ray.errors import ConfigError
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.evaluate.question import Outcome, Question, Unanswered
from trio_ray.evaluate.question_files import question_source, read_questions
from trio_ray.evaluate.scoring.scorer import Truth
from trio_ray.lab.scenes.corpus import write_corpus
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import Sample
from trio_ray.source.shards import split_file
from trio_ray.store.inputs import StoreOpener, expand_inputs

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read(file: Path | str, source: dict[str, Any] | None = None, **settings: Any) -> list[Question | Unanswered]:
    """The questions of a file under a cache's source settings."""
    config = parse_section(EvaluateConfig, {"input": str(file), **settings})
    identity = {"source": SourceConfig(**(source or {})).model_dump(mode="json", exclude={"image_root"})}
    return list(read_questions(config, question_source(identity, config)))


def questions(*arguments: Any, **settings: Any) -> list[Question]:
    """The same where every question is sound."""
    found = read(*arguments, **settings)
    assert all(isinstance(question, Question) for question in found), found
    return found  # type: ignore[return-value]


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records) + "\n")
    return path


def parquet(path: Path, records: list[dict[str, Any]]) -> Path:
    """lmms-lab's layout: the image as {bytes, path}, which reading questions must not touch."""
    table = pa.Table.from_pylist(records)
    images = pa.array([{"bytes": noise(0, (8, 8)), "path": None}] * len(records), IMAGE)
    pq.write_table(table.append_column("image", images), path)
    return path


def test_llavas_question_lines(tmp_path: Path) -> None:
    """The id keeps its type, since the official scripts look questions up by it; the image is not opened."""
    text = "Is there a dog?\nAnswer the question using a single word or phrase."
    record = {
        "question_id": 7,
        "image": "not-there.jpg",
        "text": f"<image>\n{text}",
        "category": "random",
        "label": "no",
    }
    (found,) = questions(jsonl(tmp_path / "pope.jsonl", record), scorer="pope")
    assert (found.key, found.question_id, found.text, found.category) == ("7", 7, text, "random")
    assert found.truth == Truth(("no",))


def test_a_question_without_a_true_answer_is_a_question(tmp_path: Path) -> None:
    (found,) = questions(jsonl(tmp_path / "q.jsonl", {"question_id": "a/1", "image": "x.jpg", "text": "What is it?"}))
    assert (found.question_id, found.truth, found.category) == ("a/1", None, None)


def test_pope_as_lmms_lab_has_it(tmp_path: Path) -> None:
    """`question_id` repeats from category to category there, so the key is another column, as it was for the cache."""
    rows = [
        {
            "id": str(10 * part + n),
            "question_id": str(n),
            "question": "Is there a dog?",
            "answer": "yes",
            "category": name,
        }
        for part, name in enumerate(("random", "popular"))
        for n in range(3)
    ]
    file = parquet(tmp_path / "pope.parquet", rows)
    found = questions(file, {"key_column": "id"}, scorer="pope")
    assert [question.key for question in found] == ["0", "1", "2", "10", "11", "12"]
    assert {question.category for question in found} == {"random", "popular"}


def test_vqa_keeps_all_ten_annotators(tmp_path: Path) -> None:
    annotators = ["yes"] * 7 + ["Yes.", "no", "a yes"]
    answers = [{"answer": said, "answer_confidence": "yes", "answer_id": n} for n, said in enumerate(annotators)]
    record = {
        "question_id": 262148000, "question": "Is it sunny?", "answers": answers, "multiple_choice_answer": "yes",
        "answer_type": "yes/no", "question_type": "is it",
    }  # fmt: skip
    file = parquet(tmp_path / "vqa.parquet", [record])
    (found,) = questions(file, scorer="vqa")
    assert (found.question_id, found.category) == (262148000, "yes/no")
    assert found.truth == Truth(tuple(annotators))
    (by_question_type,) = questions(file, scorer="vqa", questions={"category_column": "question_type"})
    assert by_question_type.category == "is it"


def test_textvqas_annotators_are_plain_texts(tmp_path: Path) -> None:
    record = {"question_id": 1, "question": "What does it say?", "answers": ["stop", "stop", "halt"]}
    (found,) = questions(parquet(tmp_path / "t.parquet", [record]), scorer="vqa")
    assert found.truth == Truth(("stop", "stop", "halt"))


def test_scienceqas_answer_is_an_index_and_rows_are_keyed_by_number(tmp_path: Path) -> None:
    rows = [
        {"question": "Which bird?", "choices": ["emu", "owl", "auk"], "answer": 2, "subject": "birds", "category": ""},
        {"question": "How many?", "choices": ["2", "1"], "answer": 1, "subject": "maths", "category": ""},
    ]
    file = parquet(tmp_path / "s.parquet", rows)
    found = questions(file, scorer="multiple_choice", questions={"category_column": "subject"})
    assert [(one.key, one.question_id, one.category) for one in found] == [("@0", "@0", "birds"), ("@1", "@1", "maths")]
    assert [one.truth for one in found] == [Truth(("C",), ("emu", "owl", "auk")), Truth(("B",), ("2", "1"))]


def test_mmbench_has_a_column_for_each_option_and_says_nan_for_none(tmp_path: Path) -> None:
    row = {
        "index": 241, "question": "Which?", "hint": "nan", "A": "red", "B": "blue", "C": "green", "D": "nan",
        "answer": "B", "category": "color",
    }  # fmt: skip
    (found,) = questions(parquet(tmp_path / "m.parquet", [row]), {"key_column": "index"}, scorer="multiple_choice")
    assert (found.key, found.question_id) == ("241", 241)
    assert found.truth == Truth(("B",), ("red", "blue", "green"))


def test_the_bundled_scenes_are_counted_by_type(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, 3, samples_per_shard=50)
    found = questions(tmp_path / "*.tar")
    assert [question.key for question in found] == list(manifest.keys)
    assert all(question.truth and question.category for question in found)


@pytest.mark.parametrize("turns", ["first", "each"])
@pytest.mark.parametrize("kind", ["tar", "parquet", "jsonl", "scenes", "conversations"])
def test_keys_and_shards_are_those_that_precompute_gives(kind: str, turns: str, tmp_path: Path) -> None:
    """Broken samples included: what precompute stores or quarantines, a question or a fault stands for."""
    if kind == "tar":
        file = write_tar(tmp_path / "a.tar", [*samples(5), samples(1)[0]])
    elif kind == "parquet":
        file = write_parquet(tmp_path / "a.parquet", samples(5))
    elif kind == "jsonl":
        file = write_jsonl(tmp_path / "a.jsonl", samples(5))
    elif kind == "conversations":
        turn = [{"from": who, "value": f"{who} says {n}"} for n in range(2) for who in ("human", "gpt")]
        file = jsonl(tmp_path / "a.jsonl", {"id": "x", "conversations": turn}, "{broken", {"conversations": turn[:1]})
    else:
        write_corpus(tmp_path, 4, samples_per_shard=9, broken=True)
        file = tmp_path / "*.tar"
    settings = {"turns": turns, "rows_per_shard": 3}
    found = read(file, settings)
    config, opener = SourceConfig(**settings), StoreOpener(S3Config())
    shards = [
        shard
        for input_file in expand_inputs([str(file)], S3Config())
        for shard in split_file(input_file.uri, input_file.size, input_file.etag, config, opener)
    ]
    items = [(shard.name, item) for shard in shards for item in read_shard(shard, config, opener)]
    assert [question.key for question in found] == [item.key for _, item in items]
    sound = {(name, item.key) for name, item in items if isinstance(item, Sample)}
    assert sound <= {(one.shard, one.key) for one in found if isinstance(one, Question)}


def test_a_cut_file_gives_its_sound_questions_and_a_fault(tmp_path: Path) -> None:
    write_corpus(tmp_path, 2, samples_per_shard=50)
    (file,) = tmp_path.glob("*.tar")
    file.write_bytes(file.read_bytes()[:-5000])
    *sound, last = read(file)
    assert all(isinstance(question, Question) for question in sound)
    assert len(sound) > 3
    assert isinstance(last, Unanswered)
    assert last.outcome is Outcome.UNREADABLE
    assert str(file) in last.detail


def test_settings_name_other_columns_than_the_caches(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "q.jsonl", {"uid": "u1", "ask": "what?", "said": "red", "question": "another"})
    named = {"key_column": "uid", "text_column": "ask", "answer_column": "said"}
    (found,) = questions(file, {"text_column": "question"}, questions=named)
    assert (found.key, found.question_id, found.text, found.truth) == ("u1", "u1", "what?", Truth(("red",)))


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (None, {}, "input: not one of 1 files can be read"),
        ("a,b", {}, "questions.format: .* is not read as it is .*to_parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: str | None, settings: dict[str, Any], message: str
) -> None:
    file = tmp_path / "questions.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read(file, **settings)


def test_one_lost_file_of_two_is_no_reason_to_score_the_other_alone(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "q.jsonl", {"question_id": 1, "text": "what?"})
    with pytest.raises(ConfigError, match=r"input: .*gone\.jsonl cannot be read"):
        read(tmp_path, input=[str(file), str(tmp_path / "gone.jsonl")])


def test_a_parquet_file_of_rubbish_is_one_fault(tmp_path: Path) -> None:
    file = tmp_path / "q.parquet"
    file.write_bytes(b"PAR1 but nothing more")
    (fault,) = read(file)
    assert isinstance(fault, Unanswered)
    assert fault.outcome is Outcome.UNREADABLE


def test_a_parquet_file_of_questions_needs_no_images(tmp_path: Path) -> None:
    """Whatever the column of the cache's own input was called."""
    file = tmp_path / "q.parquet"
    pq.write_table(pa.table({"id": ["a"], "question": ["what?"]}), file)
    (found,) = questions(file, {"image_column": "picture"})
    assert (found.key, found.text) == ("a", "what?")


@pytest.mark.parametrize("field", ["key_column", "text_column", "answer_column"])
def test_a_column_that_is_not_there_is_named_as_the_evaluation_sets_it(field: str, tmp_path: Path) -> None:
    """Where the evaluation says nothing of it, too: the cache's own settings are nothing that it could change."""
    file = parquet(tmp_path / "q.parquet", [{"id": "a", "question": "what?"}])
    for source, settings in (({field: "gone"}, {}), ({}, {"questions": {field: "gone"}})):
        with pytest.raises(ConfigError, match=rf"^questions\.{field}: .* has no column 'gone'"):
            read(file, source, **settings)


def test_the_format_is_the_caches_unless_the_evaluation_names_one(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "questions.txt", {"question_id": 1, "text": "what?"})
    assert questions(file, {"format": "jsonl"})[0].text == "what?"
    with pytest.raises(ConfigError, match=r"questions\.format: "):
        read(file, {"format": "jsonl"}, questions={"format": "auto"})
