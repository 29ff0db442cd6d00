"""What is refused before a model loads, and what a plan finds left to do."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.corpora import sample, samples, write_jsonl, write_tar
from tests.precompute.runs import account, job_config, run_here
from tests.seaweed import S3Server
from trio_ray.errors import ConfigError, IdentityMismatch
from trio_ray.model.replica import Replica
from trio_ray.precompute.plan import plan_job
from trio_ray.store.local import LocalStore


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "corpus" / "a.tar", samples(6))


@pytest.fixture
def weightless(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model, with a trap for whoever reads more of its weights than their names and shapes."""

    def trap(*args: object) -> str:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("trio_ray.model.loading.hash_weights", trap)
    return Path(shutil.copytree(tiny_model, tmp_path / "weightless"))


def refused(config: Any) -> ConfigError:
    """Plan, and return the one sentence of the refusal, which must come fast."""
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        plan_job(config, with_gpu=False)
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_wanted_and_not_there_ends_a_job_at_once(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = job_config(tiny_model, corpus, tmp_path / "cache", replicas__gpus=1)
    with pytest.raises(ConfigError, match=r"^replicas.gpus: 1 GPUs a replica are wanted, and this machine has none"):
        plan_job(config, with_gpu=True)
    assert not (tmp_path / "cache").exists()


def test_unread_weights_are_noticed_by_a_plan_that_is_not_refused(
    weightless: Path, corpus: Path, tmp_path: Path
) -> None:
    """So that the refusals below prove that they come before any weight is read."""
    with pytest.raises(AssertionError, match="a weight was read"):
        plan_job(job_config(weightless, corpus, tmp_path / "cache"), with_gpu=False)


@pytest.mark.parametrize(
    ("settings", "field", "word"),
    [
        ({"method__prune_points": [2, 8]}, "method.prune_points", "last layer, 7"),
        ({"method__prune_points": [4, 5, 6]}, "method.retention", "cannot be met"),
        ({"input": []}, "input", "no shards"),
        ({"input": ["/no/such/folder/*.tar"]}, "input", "matches no file"),
        ({"input": ["/no/such/file.tar"]}, "input", "/no/such/file.tar"),
        ({"input": ["s3://{a"]}, "input", "braces"),
        ({"output": ""}, "output", "missing"),
        ({"output": "ftp://host/cache"}, "output", "ftp://host/cache"),
        ({"input": ["/"]}, "input", "is a folder; name its files"),
        ({"output": "/proc/no/cache"}, "output", "/proc/no"),
        ({"model__name": "/no/such/model"}, "model.name", "/no/such/model"),
    ],
)
def test_a_job_that_cannot_run_is_refused_by_its_field_before_any_weight_is_read(
    weightless: Path, corpus: Path, tmp_path: Path, settings: dict[str, Any], field: str, word: str
) -> None:
    error = refused(job_config(weightless, corpus, tmp_path / "cache", **settings))
    assert error.field == field
    assert word in str(error)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("up", [0, 1])
def test_an_output_that_holds_the_input_is_refused(weightless: Path, corpus: Path, up: int) -> None:
    """`verify` would take the input for foreign files, and a glob over it the cache for input."""
    error = refused(job_config(weightless, corpus, corpus.parents[up]))
    assert error.field == "output"
    assert f"holds the input {corpus}" in str(error)
    assert not (corpus.parents[up] / "dataset.json").exists()


def test_an_output_below_a_file_is_refused(weightless: Path, corpus: Path) -> None:
    assert refused(job_config(weightless, corpus, corpus / "cache")).field == "output"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "llava"}, "must be 'llava_next'"),
        ({"text_config": {"model_type": "gemma2"}}, "'gemma2' is not supported"),
    ],
)
def test_another_architecture_is_refused(
    weightless: Path, corpus: Path, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    file = weightless / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    error = refused(job_config(weightless, corpus, tmp_path / "cache"))
    assert error.field == "model.name"
    assert word in str(error)


def test_folders_without_configuration_or_weights_are_refused(weightless: Path, corpus: Path, tmp_path: Path) -> None:
    next(weightless.glob("*.safetensors")).unlink()
    assert "the weights are missing" in str(refused(job_config(weightless, corpus, tmp_path / "cache")))
    (weightless / "config.json").unlink()
    assert "no config.json" in str(refused(job_config(weightless, corpus, tmp_path / "cache")))


def test_a_file_of_no_known_format_is_refused_before_a_cache_is_made(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    (corpus.parent / "b.zip").write_bytes(b"PK")
    error = refused(job_config(tiny_model, corpus.parent / "*", tmp_path / "cache"))
    assert error.field == "source.format"
    assert "b.zip" in str(error)
    assert not (tmp_path / "cache" / "dataset.json").exists()


def test_wrong_buckets_and_credentials_are_refused_by_their_field(
    weightless: Path, corpus: Path, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(job_config(weightless, corpus, "s3://no-such-bucket/cache")).field == "output"
    assert refused(job_config(weightless, "s3://no-such-bucket/*.tar", "s3://tests/x")).field == "input"
    assert refused(job_config(weightless, "s3://tests/no-such-prefix/*.tar", "s3://tests/x")).field == "input"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    error = refused(job_config(weightless, corpus, "s3://tests/x"))
    assert error.field == "output"
    assert "credentials" in str(error)
    assert "wrong" not in str(error)
    assert refused(job_config(weightless, "s3://tests/corpus/*.tar", "s3://tests/x")).field == "input"


def test_another_setting_is_refused_by_the_name_of_the_field(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    plan_job(job_config(tiny_model, corpus, tmp_path / "cache"), with_gpu=False)
    for settings, field in [
        ({"method__retention": 0.5}, "method.retention"),
        ({"method__settings": {"threshold": 0.7}}, "method.settings.threshold"),
        ({"model__dtype": "bfloat16"}, "model.dtype"),
        ({"prompt__template": "Q {prompt}"}, "prompt.template"),
        ({"cache__top_k": 3}, "cache.top_k"),
        ({"source__turns": "each"}, "source.turns"),
    ]:
        with pytest.raises(IdentityMismatch) as caught:
            plan_job(job_config(tiny_model, corpus, tmp_path / "cache", **settings), with_gpu=False)
        assert caught.value.field == field


def test_all_settings_that_differ_are_named_those_of_the_user_first(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    plan_job(job_config(tiny_model, corpus, tmp_path / "cache"), with_gpu=False)
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    settings = json.loads((other / "config.json").read_text())
    settings["text_config"]["rms_norm_eps"] = 1e-3
    (other / "config.json").write_text(json.dumps(settings))
    given = {"method__settings": {"threshold": 0.7}, "source__turns": "each", "cache__codec": "int4"}
    with pytest.raises(IdentityMismatch) as caught:
        plan_job(job_config(other, corpus, tmp_path / "cache", **given), with_gpu=False)
    fields = [field for field, _, _ in caught.value.differences]
    assert fields == ["cache.codec.name", "method.settings.threshold", "source.turns", "model.config"]
    text = str(caught.value)
    assert "source.turns = 'first', but this run has 'each'" in text
    assert text.endswith("use another output, or the settings that the cache was made with")


def test_how_the_work_is_spread_may_differ_between_runs_on_one_cache(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    first = plan_job(job_config(tiny_model, corpus, tmp_path / "cache"), with_gpu=False)
    second = plan_job(
        job_config(
            tiny_model, corpus, tmp_path / "cache", pipeline__token_budget=9, s3__part_mib=7, cache__part_samples=2
        ),
        with_gpu=False,
    )
    assert second.dataset == first.dataset
    assert second.dataset.part_samples == 4


def test_the_part_size_follows_from_the_wanted_bytes(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    """84 x 28 pixels are the largest grid: 48 patches and 16 of the base view; 8 layers x 2 x 64 x 4 bytes a row."""
    config = job_config(
        tiny_model, corpus, tmp_path / "cache", method__retention=1.0, cache__part_samples=None,
        cache__part_bytes=1 << 20, method__prune_points=[1, 2, 3],
    )  # fmt: skip
    grid = 2 * 2 * 16 + 16  # [56, 56] holds four tiles
    assert plan_job(config, with_gpu=False).dataset.part_samples == (1 << 20) // ((grid + 64) * 8 * 2 * 64 * 4)


def test_a_part_of_small_prefixes_holds_more_samples(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    """A part has a wanted size in bytes whatever the codec; else each would cost as many requests as a large one."""

    def size_of(codec: object) -> int:
        config = job_config(
            tiny_model, corpus, tmp_path / str(hash(str(codec))), method__retention=0.3, cache__part_samples=None,
            cache__part_bytes=1 << 20, cache__codec=codec,
        )  # fmt: skip
        return plan_job(config, with_gpu=False).dataset.part_samples

    whole = size_of("raw")
    assert size_of("int8") > 3 * whole  # of 32 bits, and its grids
    assert size_of("int2") > size_of("int4") > size_of("int8")


@pytest.mark.parametrize(("level", "samples"), [("embeds", (1 << 20) // ((16 + 64) * 64 * 4)), ("indices", 4096)])
def test_the_part_size_follows_from_the_level(
    tiny_model: Path, corpus: Path, tmp_path: Path, level: str, samples: int
) -> None:
    """Embeddings: 16 image rows at the first prune point and 64 of text, 64 floats each; indices: the most."""
    config = job_config(
        tiny_model, corpus, tmp_path / "cache", method__retention=None, method__prune_points=[1, 3],
        method__keep=[16, 4], cache__part_samples=None, cache__part_bytes=1 << 20, cache__level=level,
    )  # fmt: skip
    assert plan_job(config, with_gpu=False).dataset.part_samples == samples


def test_changed_input_is_lost_with_the_reason_and_the_rest_goes_on(
    tiny_model: Path, corpus: Path, tmp_path: Path, llama: Replica
) -> None:
    config = job_config(tiny_model, corpus.parent / "*.tar", tmp_path / "cache")
    run_here(config, llama)
    write_tar(corpus, samples(7))
    other = write_tar(corpus.parent / "b.tar", samples(2, first=20))
    plan = plan_job(config, with_gpu=False)
    assert [task.shard.uri for task in plan.tasks] == [str(other)]
    assert [(shard.uri, "has changed" in reason) for shard, reason in plan.lost] == [(str(corpus), True)]


def test_a_file_that_grew_is_lost_whole_though_its_rows_are_cut_anew(
    tiny_model: Path, tmp_path: Path, llama: Replica
) -> None:
    """Its new runs of rows have other names; taking them for new input would store the old rows a second time."""
    file = write_jsonl(tmp_path / "corpus" / "a.jsonl", samples(5))
    config = job_config(tiny_model, file, tmp_path / "cache", source__rows_per_shard=4)
    run_here(config, llama)
    write_jsonl(file, samples(7))
    plan = plan_job(config, with_gpu=False)
    assert plan.tasks == []
    assert [shard.rows for shard, _ in plan.lost] == [(0, 4), (4, 7)]
    assert plan.shards == 2
    found = account(LocalStore(tmp_path / "cache"))
    assert len(found.keys) == len(set(found.keys)) == 5


def test_a_file_that_is_named_outright_and_missing_is_lost_and_the_rest_goes_on(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    missing = [str(tmp_path / folder / "lost file.tar") for folder in ("x", "y")]
    plan = plan_job(job_config(tiny_model, [*missing, str(corpus)], tmp_path / "cache"), with_gpu=False)
    assert [task.shard.uri for task in plan.tasks] == [str(corpus)]
    assert [shard.uri for shard, _ in plan.lost] == missing
    assert all(uri in reason for uri, (_, reason) in zip(missing, plan.lost, strict=True)), "each keeps its reason"
    assert len({shard.name for shard, _ in plan.lost}) == 2


def test_a_lost_file_keeps_its_name_when_it_can_be_read_again(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    config = job_config(tiny_model, [str(corpus), str(tmp_path / "late.tar")], tmp_path / "cache")
    lost = plan_job(config, with_gpu=False).lost[0][0]
    write_tar(tmp_path / "late.tar", [sample(1)])
    assert lost.name in {task.shard.name for task in plan_job(config, with_gpu=False).tasks}
