"""The comparison gives each student exactly what it says, and counts as it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_ray.cache import PrunedCache
from trio_ray.distillation.comparison import CONTESTANTS, ComparisonConfig, compare, make_caches, table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config() -> ComparisonConfig:
    return ComparisonConfig(labelled=6, unlabelled=8, test=8, questions=4, steps=15, batch_size=8, layers=2, seeds=2)


@pytest.fixture(scope="module")
def folder(config: ComparisonConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    make_caches(config, folder)
    return folder


def test_students_share_their_labels_and_no_scene_with_the_test(config: ComparisonConfig, folder: Path) -> None:
    """With the teacher there are more samples, none of which has a true answer, nor has it been there in secret."""
    labelled, everything, test = (PrunedCache(str(folder / name)).table for name in ("labelled", "all", "test"))
    answers = {row["key"]: row["answer"] for row in everything.to_pylist()}
    truth = {row["key"]: row["answer"] for row in labelled.to_pylist()}
    assert {key: answer for key, answer in answers.items() if answer is not None} == truth
    assert len(truth) == 4 * config.labelled
    assert len(answers) == 4 * (config.labelled + config.unlabelled)
    unlabelled = [row for row in everything.to_pylist() if row["answer"] is None]
    assert all(row["answer_ids"] is row["target_ids"] is None for row in unlabelled)
    images = [{row["images"][0]["hash"] for row in found.to_pylist()} for found in (everything, test)]
    assert not images[0] & images[1]


def test_gains_are_counted_seed_by_seed(config: ComparisonConfig, folder: Path) -> None:
    shown: list[tuple[str, int, float]] = []
    found = compare(config, folder, lambda *result: shown.append(result))
    assert [entry[:2] for entry in shown] == [(one.name, seed) for seed in (0, 1) for one in CONTESTANTS]
    first, *others = found["contestants"].values()
    assert (first["gain"], first["standard_error"]) == (0.0, 0.0)
    for other in others:
        gains = [ours - base for ours, base in zip(other["accuracy"], first["accuracy"], strict=True)]
        assert other["gain"] == pytest.approx(sum(gains) / 2)
        assert other["standard_error"] == pytest.approx(abs(gains[0] - gains[1]) / 2)
    assert found["questions"] == 32
    assert all(one.name in table(found) for one in CONTESTANTS)
    assert compare(config, folder) == found  # nothing is trained again
