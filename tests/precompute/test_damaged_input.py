"""Input that was damaged is not in the cache, and says so run after run; once repaired it can replace what there is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.corpora import sample, samples, tar_bytes, write_jsonl, write_tar
from tests.precompute.contract import assert_follows_the_contract
from tests.precompute.runs import account, job_config, run_here
from trio_ray.cli import main
from trio_ray.cluster.progress import progress_display
from trio_ray.config import JobConfig
from trio_ray.errors import JobFailed
from trio_ray.model.replica import Replica
from trio_ray.precompute.job import run_job
from trio_ray.precompute.plan import plan_job
from trio_ray.precompute.verdict import all_bad_so_far
from trio_ray.store.commit_table import read_commits
from trio_ray.store.commits import delete_commits
from trio_ray.store.local import LocalStore
from trio_ray.store.verify import verify

WHOLE = tar_bytes(samples(10))


@pytest.fixture
def cut(tmp_path: Path, tiny_model: Path) -> JobConfig:
    """A tar that is cut off within its eighth sample, beside a sound one."""
    folder = tmp_path / "in"
    write_tar(folder / "sound.tar", samples(3, first=100))
    (folder / "cut.tar").write_bytes(WHOLE[: WHOLE.index(b"s0007")])
    return job_config(tiny_model, folder / "*.tar", tmp_path / "cache")


def redone(config: JobConfig) -> JobConfig:
    return config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"redo_damaged": True})})


def test_the_rest_of_a_damaged_shard_is_named_by_every_run_and_its_first_samples_stay(
    cut: JobConfig, llama: Replica
) -> None:
    run_here(cut, llama)
    for _ in range(2):
        summary = run_job(cut)
        ((uri, why),) = summary.failed.items()
        assert uri.endswith("cut.tar")
        assert all(words in why for words in ("shard_truncated", "s0006", "--redo-damaged"))
        assert (summary.ok, summary.stored) == (False, 0)
    store = LocalStore(cut.output)
    assert set(account(store).keys) == {f"s{number:04d}" for number in [*range(6), 100, 101, 102]}
    assert_follows_the_contract(store)


def test_a_repaired_shard_replaces_the_damaged_one_on_request(cut: JobConfig, llama: Replica) -> None:
    run_here(cut, llama)
    (Path(cut.input[0]).parent / "cut.tar").write_bytes(WHOLE)
    refused = run_job(cut)
    assert "--redo-damaged" in next(iter(refused.failed.values()))
    run_here(redone(cut), llama)
    store = LocalStore(cut.output)
    found = account(store)
    assert sorted(found.keys) == sorted(f"s{number:04d}" for number in [*range(10), 100, 101, 102])
    assert found.reasons == {}
    assert run_job(cut).ok
    assert run_job(redone(cut)).shards_before == 2
    assert {finding.kind for finding in verify(store, 2).findings} <= {"orphan"}


def test_a_replacement_that_was_interrupted_goes_on(cut: JobConfig, llama: Replica) -> None:
    """What tells of the damage is taken out last."""
    run_here(cut, llama)
    store = LocalStore(cut.output)
    damaged = next(one for one in read_commits(store, 2) if one.damage)
    assert damaged.part == 1
    delete_commits(store, damaged.shard.name, [0])
    (Path(cut.input[0]).parent / "cut.tar").write_bytes(WHOLE)
    run_here(redone(cut), llama)
    assert run_job(cut).ok
    assert len(account(store).keys) == 13


def test_an_unchanged_damaged_shard_is_not_done_again(cut: JobConfig, llama: Replica) -> None:
    run_here(cut, llama)
    assert plan_job(redone(cut), with_gpu=False).tasks == []


@pytest.mark.parametrize("write", ["copied", "touched"])
def test_a_copy_of_the_bytes_is_the_same_input(tmp_path: Path, tiny_model: Path, llama: Replica, write: str) -> None:
    file = write_jsonl(tmp_path / "in" / "b.jsonl", samples(6))
    config = job_config(tiny_model, file, tmp_path / "cache", source__rows_per_shard=4)
    run_here(config, llama)
    if write == "copied":
        shutil.copyfile(file, tmp_path / "copy")
        (tmp_path / "copy").replace(file)
    os.utime(file, ns=(1, 1))
    assert (run_job(config).ok, run_job(config).shards_before) == (True, 2)
    data = bytearray(file.read_bytes())
    data[data.index(b"what")] ^= 1
    file.write_bytes(data)
    assert "write this version to another output" in str(run_job(config))


def test_parts_of_a_copy_go_on_from_those_of_the_first(tmp_path: Path, tiny_model: Path, llama: Replica) -> None:
    file = write_tar(tmp_path / "a.tar", samples(10))
    config = job_config(tiny_model, file, tmp_path / "cache")
    run_here(config, llama)
    store = LocalStore(tmp_path / "cache")
    delete_commits(store, read_commits(store, 2)[0].shard.name, [1, 2])
    os.utime(file, ns=(1, 1))
    run_here(config, llama)
    assert run_job(config).ok
    assert account(store).keys == [f"s{number:04d}" for number in range(10)]


@pytest.mark.parametrize("name", ["a.tar", "a.jsonl", "a.json", "a.parquet"])
def test_a_file_of_zero_bytes_is_named_and_not_a_bad_sample(
    tmp_path: Path, tiny_model: Path, llama: Replica, name: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    config = job_config(tiny_model, tmp_path / name, tmp_path / "cache")
    run_here(config, llama)
    assert "shard_truncated" in str(run_job(config))


def mixed(tmp_path: Path, order: int) -> list[str]:
    """150 rows of which a fifth is bad in all: two files whose bad rows are first or last."""
    sound, bad = samples(40), [{"__key__": f"bad{number}", "png": b""} for number in range(70)]
    files = [("a.tar", sound), ("b.tar", bad)][:: 1 if order else -1]
    return [str(write_tar(tmp_path / f"{number}-{name}", rows)) for number, (name, rows) in enumerate(files)]


@pytest.mark.parametrize("order", [0, 1])
def test_too_many_bad_samples_fail_every_run_whatever_the_order(
    tmp_path: Path, tiny_model: Path, llama: Replica, order: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that has nothing left to do, and one that sees a part of the input alone."""
    inputs = mixed(tmp_path, order)
    config = job_config(tiny_model, inputs, tmp_path / "cache")
    run_here(config, llama)
    for part in (inputs, inputs[:1], inputs[1:]):
        with pytest.raises(JobFailed, match=r"70 of all 110 .*max_bad_fraction") as caught, progress_display() as shown:
            run_job(job_config(tiny_model, part, tmp_path / "cache"), shown)
        assert caught.value.exit_code == 4
    assert "nothing was left to do" in capsys.readouterr().err
    run_job(job_config(tiny_model, inputs, tmp_path / "cache", pipeline__max_bad_fraction=0.7))


def test_rows_without_an_image_can_be_passed_over_silently(tmp_path: Path, tiny_model: Path, llama: Replica) -> None:
    """A whole part of them leaves no gap, and they count for nothing."""
    texts = [sample(number, png=None) for number in range(100, 200)]
    file = write_tar(tmp_path / "a.tar", [*samples(2), *texts, *samples(3, first=50)])
    config = job_config(tiny_model, file, tmp_path / "counted")
    run_here(config, llama)
    with pytest.raises(JobFailed, match=r"source\.text_only: skip"):
        run_job(config)
    config = job_config(tiny_model, file, tmp_path / "cache", source__text_only="skip")
    reports = run_here(config, llama)
    assert (sum(one.passed_over for one in reports), sum(one.quarantined for one in reports)) == (100, 0)
    summary = run_job(config)
    assert (summary.ok, summary.shards_before) == (True, 1)
    assert account(LocalStore(tmp_path / "cache")).keys == ["s0000", "s0001", "s0050", "s0051", "s0052"]
    assert verify(LocalStore(tmp_path / "cache"), 2).ok


def test_a_thousand_bad_samples_before_the_first_sound_one_are_a_warning_and_rows_without_images_no_reason() -> None:
    """They end no job: in another order the same input would not be ended."""
    assert all_bad_so_far({"image_empty": 999, "text_only": 50_000}) is None
    warning = all_bad_so_far({"image_empty": 1000, "text_only": 50_000})
    assert warning is not None
    assert "not one of the first 1000 samples could be stored, most of them for the reason image_empty" in warning


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_mixed_corpus_passes_and_fails_the_same_in_any_order_and_over_any_runs(
    order: tuple[int, ...], tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    """Half of the rows are text alone, and whole files are."""
    sound = [sample(number) for number in range(60)]
    alone = [sample(number, png=None) for number in range(100, 160)]
    groups = [sound, alone[:30], alone[30:]]
    files = [str(write_tar(tmp_path / f"{place}.tar", groups[group])) for place, group in enumerate(order)]
    for end in range(1, len(files)):  # runs that add one file after another
        run_here(job_config(tiny_model, files[:end], tmp_path / "cache"), llama)
    run_here(job_config(tiny_model, files, tmp_path / "cache"), llama)
    with pytest.raises(JobFailed, match="60 of all 120 samples"):
        run_job(job_config(tiny_model, files, tmp_path / "cache"))
    enough = job_config(tiny_model, files, tmp_path / "cache", pipeline__max_bad_fraction=0.5)
    assert run_job(enough).ok


def test_an_output_whose_name_is_not_utf8_is_refused_in_a_sentence(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_tar(tmp_path / "a.tar", samples(1))
    output = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    assert main(["precompute", "--input", str(file), "--output", output, "--model", str(tiny_model)]) == 2
    assert "output: " in capsys.readouterr().err
