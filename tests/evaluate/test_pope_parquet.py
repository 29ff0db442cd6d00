"""POPE as lmms-lab publishes it: three Parquet files, one a category, whose `question_id` begins anew in each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpora import noise
from tests.precompute.runs import account, job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import parse_section
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.evaluate.join import Answerable, join, tasks_of
from trio_ray.evaluate.question import Unanswered
from trio_ray.evaluate.question_files import question_source, read_questions
from trio_ray.evaluate.scoring.pope import Pope
from trio_ray.evaluate.scoring.scorer import Truth
from trio_ray.evaluate.scoring.summary import ScoredAnswer, summarise
from trio_ray.model.replica import Replica
from trio_ray.store.opening import open_store

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("image_source", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.null())])),
        ("category", pa.string()),
    ]
)
"""The columns of huggingface.co/datasets/lmms-lab/POPE, in their order."""

CATEGORIES = ("adversarial", "popular", "random")
PER_CATEGORY = 4
THINGS = ("snowboard", "dog", "car", "cup")


def write_pope(folder: Path, files: int) -> Path:
    """The rows of all categories, spread evenly over `files`; returns the glob that names them."""
    rows = [
        {
            "id": str(PER_CATEGORY * part + number),
            "question_id": str(number + 1),
            "question": f"Is there a {THINGS[number]} in the image?",
            "answer": "no" if number % 2 else "yes",
            "image_source": f"COCO_val2014_{part:012d}",
            "image": {"bytes": noise(part, (40, 30)), "path": None},
            "category": category,
        }
        for part, category in enumerate(CATEGORIES)
        for number in range(PER_CATEGORY)
    ]
    size = len(rows) // files
    for number in range(files):
        table = pa.Table.from_pylist(rows[size * number : size * (number + 1)], SCHEMA)
        pq.write_table(table, folder / f"test-{number:05d}-of-{files:05d}.parquet")
    return folder / "test-*.parquet"


def stored_and_asked(
    glob: Path, model: Path, replica: Replica, output: Path, **settings: str
) -> tuple[PrunedCache, list[Answerable], list[Unanswered]]:
    """Precompute the files, then ask them: the evaluation is told nothing of their columns."""
    config = job_config(model, glob, output, **settings)
    run_here(config, replica)
    cache = PrunedCache(config.output)
    asking = parse_section(EvaluateConfig, {"input": str(glob), "scorer": "pope"})
    return cache, *join(read_questions(asking, question_source(cache.dataset.identity, asking)), cache, "pope")


@pytest.mark.parametrize("files", [1, 3])
def test_keyed_by_id_each_question_meets_its_own_prefix(
    files: int, model_folders: dict[str, Path], llama: Replica, tmp_path: Path
) -> None:
    """Whether the files are as published or made into one; and the scores come by category."""
    glob = write_pope(tmp_path, files)
    cache, found, refused = stored_and_asked(
        glob, model_folders["llama"], llama, tmp_path / "cache", source__key_column="id"
    )
    assert refused == []
    assert cache.keys() == [str(number) for number in range(len(CATEGORIES) * PER_CATEGORY)]
    tasks = tasks_of(found)
    assert [one.question.key for one in found] == [task.row["key"] for task in tasks] == cache.keys()
    assert all(task.question in task.row["prompt"] for task in tasks)
    assert [one.question.question_id for one in found] == ["1", "2", "3", "4"] * 3
    assert [one.question.truth for one in found] == [Truth(("yes",)), Truth(("no",))] * 6
    assert Counter(one.question.category for one in found) == dict.fromkeys(CATEGORIES, PER_CATEGORY)
    assert cache.prefix("5").length == cache.row("5")["prompt_tokens"]

    scorer = Pope()
    scored = [
        ScoredAnswer("Yes", truth, scorer.score("Yes", truth), one.question.category, one.image)
        for one in found
        if (truth := one.question.truth)
    ]
    summary = summarise(scorer, scored)
    assert summary["overall"]["accuracy"] == 0.5
    assert (summary["overall"]["recall"], summary["overall"]["yes_rate"]) == (1, 1)
    assert set(summary["by_category"]) == set(CATEGORIES)


def test_without_the_setting_one_file_of_all_categories_loses_most_to_quarantine(
    model_folders: dict[str, Path], llama: Replica, tmp_path: Path
) -> None:
    """By default `question_id` is the key: the first category alone is stored, and the others are refused by name."""
    cache, found, refused = stored_and_asked(write_pope(tmp_path, 1), model_folders["llama"], llama, tmp_path / "cache")
    assert cache.keys() == ["1", "2", "3", "4"]
    assert [one.question.category for one in found] == ["adversarial"] * PER_CATEGORY
    assert len(refused) == 2 * PER_CATEGORY
    assert all("key_column" in one.detail for one in refused)
    quarantined = account(open_store(cache.uri, job_config(tmp_path, "", "").s3)).quarantined
    assert len(quarantined) == 2 * PER_CATEGORY
