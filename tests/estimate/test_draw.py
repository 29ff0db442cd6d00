"""A drawn corpus is spread over the input, keeps an image's questions together, and says how large the whole is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.corpora import noise, sample, samples, write_jsonl, write_parquet, write_tar
from trio_ray.config import JobConfig, load_config
from trio_ray.errors import ConfigError
from trio_ray.estimate.draw import RUN_SAMPLES, draw_corpus


def job(inputs: object, **values: Any) -> JobConfig:
    return load_config(values={"input": [str(item) for item in inputs], **values})  # type: ignore[attr-defined]


def test_every_sample_of_a_small_corpus_is_counted_whatever_its_format(tmp_path: Path) -> None:
    files = [
        write_tar(tmp_path / "a.tar", [*samples(20), sample(20, png=b"")]),
        write_parquet(tmp_path / "b.parquet", samples(9)),
        write_jsonl(tmp_path / "c.jsonl", samples(7)),
    ]
    drawn = draw_corpus(job(files, **{"source.rows_per_shard": 5}), 1000)
    assert [(shard.format, items) for shard, items in zip(drawn.shards, drawn.items, strict=True)] == [
        ("webdataset", 21), ("parquet", 5), ("parquet", 4), ("jsonl", 5), ("jsonl", 2),
    ]  # fmt: skip
    assert drawn.exact
    assert sum(len(run) for run in drawn.runs) == 37


def test_a_large_tar_is_estimated_from_its_bytes(tmp_path: Path) -> None:
    """Only its beginning is counted; the images differ in size by a hundred times."""
    tar = write_tar(tmp_path / "a.tar", samples(400))
    drawn = draw_corpus(job([tar]), 8)
    assert not drawn.exact
    assert drawn.items[0] == pytest.approx(400, rel=0.15)
    assert drawn.items[0] != 400


def test_shards_that_were_not_drawn_from_count_by_the_density_of_the_others(tmp_path: Path) -> None:
    tars = [write_tar(tmp_path / f"{number}.tar", samples(30, first=30 * number)) for number in range(6)]
    drawn = draw_corpus(job(tars), 3 * RUN_SAMPLES)
    assert not drawn.exact
    assert sum(items == 30 for items in drawn.items) == 3
    assert sum(drawn.items) == pytest.approx(180, rel=0.15)


def test_runs_hold_all_questions_about_their_images(tmp_path: Path) -> None:
    """Six questions an image never begin a run of sixteen in step with it."""
    images = [noise(number, (30, 30)) for number in range(40)]
    asked = [sample(number, png=images[number // 6]) for number in range(240)]
    drawn = draw_corpus(job([write_tar(tmp_path / "a.tar", asked)]), 48)
    assert len(drawn.runs) == 3
    for run in drawn.runs:
        assert run[0].index % 6 == 0
        assert len(run) % 6 == 0
    assert [run[0].index for run in drawn.runs] == [0, 84, 162]


def test_a_conversation_counts_once_for_each_question(tmp_path: Path) -> None:
    turns = [{"from": who, "value": "what is it ?"} for _ in range(3) for who in ("human", "gpt")]
    lines = [sample(number, json={"question": turns, "answer": None}) for number in range(4)]
    file = write_jsonl(tmp_path / "a.jsonl", lines)
    settings = {"source.turns": "each", "source.text_column": "question"}
    drawn = draw_corpus(job([file], **settings), 1000)
    assert sum(drawn.items) == 12


def test_a_shard_that_cannot_be_read_is_left_out_and_an_input_of_nothing_else_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(3))
    drawn = draw_corpus(job([tar, tmp_path / "missing.tar"]), 10)
    assert (len(drawn.shards), drawn.unreadable) == (1, 1)
    empty = tmp_path / "empty.tar"
    empty.write_bytes(bytes(1024))
    with pytest.raises(ConfigError, match="input"):
        draw_corpus(job([empty]), 10)
    with pytest.raises(ConfigError, match="input"):
        draw_corpus(load_config(), 10)
