"""lmms-eval runs a local task through the plugin: pruned on the fly, and from a cache. Needs lmms-eval itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: it is an extra")

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models.registry_v2 import ModelRegistryV2
from lmms_eval.tasks import TaskManager

from tests.precompute.runs import job_config, run_here
from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.evaluate.lmms_eval.manifest import manifest
from trio_ray.evaluate.lmms_eval.model import TrioRay
from trio_ray.evaluate.question import NoAnswer
from trio_ray.lab.accuracy.questions import HeldOutQuestion, held_out_questions
from trio_ray.model.replica import Replica

QUESTIONS = 8
NEW_TOKENS = 16
TASK = """
task: scenes
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_visual: !function scenes.visual
doc_to_text: !function scenes.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false, until: ["ZZZ"]}}
process_results: !function scenes.results
metric_list:
  - {{metric: accuracy, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
FUNCTIONS = """
import io
from PIL import Image

def visual(doc):
    return [Image.open(io.BytesIO(doc["image"]["bytes"])).convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def results(doc, results):
    return {"accuracy": float(results[0] == doc["answer"])}
"""


@pytest.fixture(scope="module")
def questions() -> list[HeldOutQuestion]:
    """Rendered scenes with questions."""
    return held_out_questions(QUESTIONS, workers=1)


@pytest.fixture(scope="module")
def folder(questions: list[HeldOutQuestion], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task: its YAML, its functions, its data in lmms-lab's layout."""
    folder = tmp_path_factory.mktemp("task")
    rows = [
        {
            "question_id": question.sample.key,
            "image": {"bytes": question.sample.images[0], "path": None},
            "question": question.sample.turns[0].text,
            "answer": question.answer,
        }
        for question in questions
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "scenes.parquet")
    (folder / "scenes.yaml").write_text(TASK.format(data=folder / "scenes.parquet"))
    (folder / "scenes.py").write_text(FUNCTIONS)
    return folder


@pytest.fixture(scope="module")
def expected(questions: list[HeldOutQuestion]) -> list[str]:
    """The answers of a pruned run in this process, one by one."""
    replica = Replica.load(ModelConfig(dtype="float32"))
    config = job_config(Path(BUNDLED_MODEL), "in", "out")
    method = config.method.build(replica.decoder.depth)
    answers = []
    for question in questions:
        prepared = replica.preparer(10**8).prepare(question.sample)
        answers += replica.generate(replica.prefill([prepared], method).prefixes, NEW_TOKENS)  # type: ignore[list-item]
    return answers


def evaluate(model: TrioRay, folder: Path) -> tuple[float, list[str]]:
    """lmms-eval's accuracy, and the answers by document."""
    tasks = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
    found: dict[str, Any] = simple_evaluate(
        model, tasks=["scenes"], task_manager=tasks, batch_size=1, bootstrap_iters=0, process_docs_parallel=1
    )
    samples = sorted(found["samples"]["scenes"], key=lambda sample: sample["doc_id"])
    answers = [sample["filtered_resps"][0] for sample in samples]
    return found["results"]["scenes"]["accuracy,none"], answers


def test_a_task_is_answered_on_the_fly_and_from_a_cache_as_by_a_pruned_run(
    folder: Path, questions: list[HeldOutQuestion], expected: list[str], tmp_path: Path
) -> None:
    accuracy = sum(said == question.answer for said, question in zip(expected, questions, strict=True)) / QUESTIONS
    on_the_fly = TrioRay(dtype="float32", retention=0.3, token_budget=1000, batch_size=1)
    assert evaluate(on_the_fly, folder) == (pytest.approx(accuracy), expected)

    config = job_config(Path(BUNDLED_MODEL), folder / "scenes.parquet", tmp_path / "cache")
    run_here(config, Replica.load(ModelConfig(dtype="float32")))
    from_cache = TrioRay(cache=config.output)
    assert evaluate(from_cache, folder) == (pytest.approx(accuracy), expected)


def test_documents_find_their_prefixes_by_the_rows_of_the_files(
    folder: Path, expected: list[str], tmp_path: Path
) -> None:
    config = job_config(Path(BUNDLED_MODEL), folder / "scenes.parquet", tmp_path / "cache", source__keys="row")
    run_here(config, Replica.load(ModelConfig(dtype="float32")))
    assert evaluate(TrioRay(cache=config.output), folder)[1] == expected


def test_a_document_that_the_cache_does_not_hold_is_named(folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(folder / "scenes.parquet")
    pq.write_table(table.slice(0, QUESTIONS - 1), tmp_path / "most.parquet")
    config = job_config(Path(BUNDLED_MODEL), tmp_path / "most.parquet", tmp_path / "cache")
    run_here(config, Replica.load(ModelConfig(dtype="float32")))
    with pytest.raises(NoAnswer, match=table.column("question_id")[QUESTIONS - 1].as_py()):
        evaluate(TrioRay(cache=config.output), folder)


def test_lmms_eval_finds_the_model_by_its_name() -> None:
    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    model = registry.get_model_class("trio_ray").create_from_arg_string("retention=0.25,selector=trio-plus")
    assert isinstance(model, TrioRay)


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"retention": 2}, "retention"), ({"keep_ratio": 1}, "keep_ratio"), ({"dtype": "int4"}, "dtype")],
)
def test_a_setting_that_does_not_exist_is_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        TrioRay(**settings)


def test_how_to_prune_is_no_question_beside_a_cache(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"retention: .*pruned already"):
        TrioRay(cache=str(tmp_path), retention=0.1)


def test_a_cache_of_another_level_is_refused_before_the_first_question(folder: Path, tmp_path: Path) -> None:
    config = job_config(Path(BUNDLED_MODEL), folder / "scenes.parquet", tmp_path / "cache", cache__level="indices")
    run_here(config, Replica.load(ModelConfig(dtype="float32")))
    with pytest.raises(ConfigError, match=r"cache: .* stores indices"):
        TrioRay(cache=config.output)


@pytest.mark.parametrize("settings", [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}])
def test_a_task_that_samples_is_refused(settings: dict[str, Any]) -> None:
    class Request:
        args = ("what?", settings, lambda doc: [], 0, "task", "test")

    with pytest.raises(ConfigError, match="greedily"):
        TrioRay().generate_until([Request()])
