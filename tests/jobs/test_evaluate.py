"""`trio-ray evaluate` and `jobs/evaluate.py` as people run them, on S3 and Ray, beside a pruned run in this process."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.util.state import list_actors

from tests.evaluate.sick_actor import OneIsSick
from tests.precompute.ray_cluster import REPOSITORY, SmallCluster, small_cluster
from tests.precompute.runs import job_config, run_here
from tests.seaweed import S3Server
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cli import main
from trio_ray.cluster.actors import ActorFactory
from trio_ray.cluster.progress import NoProgress
from trio_ray.config import BUNDLED_MODEL, JobConfig, ModelConfig, load_section, parse_section
from trio_ray.errors import JobFailed
from trio_ray.evaluate import job as evaluate_job
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.evaluate.job import run_evaluation
from trio_ray.lab.scenes.corpus import write_corpus
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import Sample
from trio_ray.source.shards import split_file
from trio_ray.store.inputs import StoreOpener, expand_inputs
from trio_ray.store.opening import open_store

pytestmark = pytest.mark.slow

SCENES = 6
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def cluster(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallCluster]:
    """One cluster for all tests here, whose processes reach the S3 server."""
    with small_cluster(s3_server, tmp_path_factory.mktemp("ray")) as running:
        yield running


@pytest.fixture(scope="module")
def bundled() -> Replica:
    """The bundled model in fp32."""
    return Replica.load(ModelConfig(dtype="float32"))


@pytest.fixture(scope="module")
def job(
    cluster: SmallCluster, bundled: Replica, tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server
) -> JobConfig:
    """A precompute job of rendered scenes, some samples broken, that has run into a cache on S3."""
    folder = tmp_path_factory.mktemp("scenes")
    write_corpus(folder, SCENES, samples_per_shard=12, broken=True)
    config = job_config(Path(BUNDLED_MODEL), folder / "*.tar", s3_server.fresh_uri())
    run_here(config, bundled)
    return config


def lines(uri: str, config: JobConfig, name: str) -> list[dict[str, Any]]:
    """A JSONL file of an evaluation's output."""
    return [json.loads(line) for line in open_store(uri, config.s3).read(name).splitlines()]


def metrics(uri: str, config: JobConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(open_store(uri, config.s3).read("metrics.json"))
    return found


@pytest.fixture(scope="module")
def expected(job: JobConfig, bundled: Replica) -> dict[str, tuple[str, str | None]]:
    """Key -> answer and truth of every good sample of the job's input, pruned and answered one by one: no cache."""
    config, replica = job, bundled
    prepare = replica.preparer(config.source.max_pixels).prepare
    method = config.method.build(replica.decoder.depth)
    opener = StoreOpener(config.s3)
    answers = {}
    for file in expand_inputs(config.input, config.s3):
        for shard in split_file(file.uri, file.size, file.etag, config.source, opener):
            for item in read_shard(shard, config.source, opener):
                prepared = prepare(item)
                if isinstance(item, Sample) and isinstance(prepared, PreparedSample):
                    (answer,) = replica.generate(replica.prefill([prepared], method).prefixes, NEW_TOKENS)
                    answers[item.key] = answer, item.answer
    return answers


def test_the_shipped_configuration_is_valid() -> None:
    config = load_section(EvaluateConfig, REPOSITORY / "jobs" / "evaluate.yaml")
    assert config.cache.startswith("s3://")
    assert config.scorer == "pope"


def test_a_submitted_job_answers_from_s3_as_the_pruned_run_in_one_process_does(
    cluster: SmallCluster,
    job: JobConfig,
    expected: dict[str, tuple[str, str | None]],
    s3_server: S3Server,
    tmp_path: Path,
) -> None:
    """Question by question; the broken samples are counted by kind, and the scores follow from the answers."""
    output = s3_server.fresh_uri()
    settings = {
        "cache": job.output, "input": list(job.input), "output": output, "on_missing": "skip",
        "answering": {"max_new_tokens": NEW_TOKENS, "sequences": 4, "chunk_questions": 5},
        "replicas": {"max": 2},
    }  # fmt: skip
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(settings))
    submitted = cluster.submit("evaluate.py", "--config", str(tmp_path / "evaluate.yaml"))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr

    answers = lines(output, job, "answers.jsonl")
    assert {line["question_id"]: line["text"] for line in answers} == {key: said for key, (said, _) in expected.items()}
    assert len(answers) == len(expected) >= 4 * SCENES
    found = metrics(output, job)
    right = [said == true for said, true in expected.values() if true is not None]
    assert found["overall"]["accuracy"] == pytest.approx(sum(right) / len(right))
    low, high = found["overall"]["interval"]
    assert low <= found["overall"]["accuracy"] <= high
    assert sum(part["questions"] for part in found["by_category"].values()) <= found["overall"]["questions"]
    assert found["answered"] == len(expected)
    refused = lines(output, job, "unanswered.jsonl")
    assert sum(found["unanswered"].values()) == len(refused) > 5
    assert {"quarantined", "unreadable"} <= set(found["unanswered"])
    assert re.search(r"accuracy \d", submitted.stdout)


def evaluation(job: JobConfig, output: str, **settings: Any) -> EvaluateConfig:
    """An evaluation of the whole cache; `settings` replace or add."""
    answering = {"max_new_tokens": NEW_TOKENS}
    tree = {"cache": job.output, "output": output, "answering": answering, "s3": job.s3.model_dump(), **settings}
    return parse_section(EvaluateConfig, tree)


def options(config: EvaluateConfig) -> list[str]:
    """The same on a command line."""
    tree = config.model_dump(mode="json", exclude={"cache", "input", "output"})
    named = ["--cache", config.cache, "--output", config.output, *(["--input", *config.input] if config.input else [])]
    return [
        "evaluate",
        *named,
        *(word for name, value in tree.items() for word in ("--set", f"{name}={json.dumps(value)}")),
    ]


def test_a_dead_or_sick_replicas_questions_are_answered_by_another(
    cluster: SmallCluster,
    job: JobConfig,
    expected: dict[str, tuple[str, str | None]],
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One fails at every chunk, and is given no second one; one is killed. Without question files all stored samples
    are asked, and the answers stand in the cache's order.
    """
    monkeypatch.setattr(
        evaluate_job,
        "ActorFactory",
        lambda _, arguments, calls_at_once: ActorFactory(OneIsSick, (*arguments, tmp_path), calls_at_once),
    )
    killed: list[int] = []
    said: list[str] = []

    class KillOne(NoProgress):
        def say(self, line: str) -> None:
            said.append(line)

        def update(self, counts: Mapping[str, int], note: str = "", share: float | None = None) -> None:
            if not killed and counts["questions"]:
                alive = [("class_name", "=", "OneIsSick"), ("state", "=", "ALIVE")]
                killed.append(list_actors(address=cluster.dashboard, filters=alive)[0].pid)
                os.kill(killed[0], signal.SIGKILL)

    output = s3_server.fresh_uri()
    config = evaluation(job, output, replicas={"max": 2})
    answering = config.answering.model_copy(update={"chunk_questions": 2})
    config = config.model_copy(update={"answering": answering})
    found = run_evaluation(config, KillOne())
    assert killed
    assert len(list(tmp_path.glob("chunk-*"))) == 1, "a sick replica would fail at every chunk, and eat them all"
    assert any("lost" in line and "CUDA error" in line for line in said), said
    cache = PrunedCache(job.output, job.s3)
    answers = lines(output, job, "answers.jsonl")
    assert [line["question_id"] for line in answers] == cache.keys()
    assert [line["text"] for line in answers] == [expected[key][0] for key in cache.keys()]  # noqa: SIM118
    assert found == metrics(output, job)
    assert found["unanswered"] == {}
    assert found["answered"] == len(cache)
    assert found["read_bytes"] == sum(cache.table.column("kv_length").to_pylist())


def test_a_question_without_a_prefix_ends_the_job_unless_it_may_be_skipped(
    cluster: SmallCluster, job: JobConfig, s3_server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default the answer names the question, exits with 4, and leaves no answers behind."""
    row = PrunedCache(job.output, job.s3).table.slice(0, 1).to_pylist()[0]
    text = row["prompt"].rpartition("\n")[2].removesuffix("ASSISTANT:").strip()
    file = tmp_path / "questions.jsonl"
    records = [{"question_id": row["key"], "text": text}, {"question_id": 404, "text": "what?"}]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    output = s3_server.fresh_uri()
    config = evaluation(job, output, input=[str(file)])
    assert main(options(config)) == 4
    shown = capsys.readouterr()
    assert shown.err.startswith("checking\n")
    assert "trio-ray: question 404 (missing): " in shown.err
    assert "on_missing: skip" in shown.err
    assert list(open_store(output, job.s3).list()) == []

    assert main(options(config.model_copy(update={"on_missing": "skip"}))) == 0
    assert "1 of 2 questions answered (1 missing)" in capsys.readouterr().out
    assert [line["question_id"] for line in lines(output, job, "answers.jsonl")] == [row["key"]]
    assert [line["question_id"] for line in lines(output, job, "unanswered.jsonl")] == [404]


@pytest.fixture
def local(job: JobConfig, tmp_path: Path) -> JobConfig:
    """The job with a copy of its cache in a folder, which a test may damage."""
    store = open_store(job.output, job.s3)
    for info in store.list():
        file = tmp_path / "cache" / info.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.read(info.name))
    return job.model_copy(update={"output": str(tmp_path / "cache")})


def test_a_damaged_prefix_ends_the_job_or_is_counted(
    cluster: SmallCluster, local: JobConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = PrunedCache(local.output).table.slice(3, 1).to_pylist()[0]
    file = tmp_path / "cache" / row["kv_object"]
    data = bytearray(file.read_bytes())
    data[row["kv_offset"] + 999] ^= 1
    file.write_bytes(data)
    config = evaluation(local, str(tmp_path / "out"))
    assert main(options(config)) == 4
    assert f"question {row['key']!r} (damaged)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "answers.jsonl").exists()
    assert main(options(config.model_copy(update={"on_missing": "skip"}))) == 0
    found = metrics(str(tmp_path / "out"), local)
    assert found["unanswered"] == {"damaged": 1}
    assert found["answered"] == found["overall"]["questions"] == len(PrunedCache(local.output)) - 1


def test_a_store_that_keeps_failing_ends_the_job_with_its_sentence(
    cluster: SmallCluster, local: JobConfig, tmp_path: Path
) -> None:
    """What is no question's own fault is tried again, not counted against a question. Other questions that the
    replica was given meanwhile are not to blame.
    """
    rows = PrunedCache(local.output).table.to_pylist()
    file = tmp_path / "cache" / rows[0]["kv_object"]
    file.unlink()
    file.symlink_to(file)
    keys = "|".join(re.escape(repr(row["key"])) for row in rows if row["kv_object"] == rows[0]["kv_object"])
    config = evaluation(local, str(tmp_path / "out"), on_missing="skip", replicas={"attempts": 2})
    config = config.model_copy(update={"answering": config.answering.model_copy(update={"chunk_questions": 1})})
    with pytest.raises(
        JobFailed, match=rf"the questions ({keys}) \.\. .* failed 2 times; the last: StoreError: .*{file.name}"
    ):
        run_evaluation(config)
    assert not (tmp_path / "out" / "answers.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (["--cache", ""], 2, "cache: is missing"),
        (["--output", ""], 2, "output: is missing"),
        (["--output", "/proc/no/results"], 2, "output: "),
        (["--set", "scorer=bleu"], 2, "scorer: "),
        (["--set", "answering.max_new_token=5"], 2, "answering.max_new_token: is not a setting"),
        (["--input", "/no/such/*.jsonl"], 2, "input: '/no/such/*.jsonl' matches no file"),
        (["--set", "model.dtype=bfloat16"], 3, "model.dtype = 'float32'"),
        (["--config", "/no/such.yaml"], 2, "--config: "),
    ],
)
def test_what_cannot_run_ends_in_one_line_before_anything_is_loaded(
    job: JobConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], code: int, message: str
) -> None:
    base = ["--cache", job.output, "--output", str(tmp_path / "out")]
    assert main(["evaluate", *base, *settings]) == code
    shown = capsys.readouterr()
    (sentence,) = (line for line in shown.err.splitlines() if line != "checking")
    assert message in sentence
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_cluster_without_room_for_a_replica_is_said(cluster: SmallCluster, job: JobConfig, tmp_path: Path) -> None:
    config = evaluation(job, str(tmp_path / "out"), replicas={"cpus": 64, "start_timeout_s": 2})
    with pytest.raises(JobFailed, match=r"0 of at least 1 replicas started in 2 s; .* 64 CPUs .*replicas\.cpus"):
        run_evaluation(config)
