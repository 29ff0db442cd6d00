"""The benchmark of reading measures real reads of real caches, on a CPU as on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.kv.prefixes import assert_same
from trio_ray.cache.pruned_cache import PrunedCache, StoredPrefix
from trio_ray.cli import main
from trio_ray.config import S3Config
from trio_ray.estimate.made_up_states import GEOMETRIES, prefix_batch
from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.codecs.transform import Transform, TransformSpec
from trio_ray.kv.target import RowTarget
from trio_ray.lab.restore.clients import Files
from trio_ray.lab.restore.core import COMPONENTS, Fp32Transform, StoredSymbols
from trio_ray.lab.restore.samples import store_samples
from trio_ray.lab.restore.stored import write_cache


def test_its_cache_holds_the_states_that_were_made_up(tmp_path: Path) -> None:
    states = prefix_batch(GEOMETRIES["bundled"], 3, torch.device("cpu"))
    samples = store_samples("raw", 1.0, GEOMETRIES["bundled"], states)
    stored = write_cache(str(tmp_path / "cache"), S3Config(), samples, 2 * samples.stored_bytes)
    assert len(stored.rows) == 6
    for sample, prefix in zip(PrunedCache(stored.uri).stream(stored.rows), states.split() * 2, strict=True):
        assert isinstance(sample, StoredPrefix)
        assert_same(sample.prefix, prefix)


def test_bare_clients_read_the_ranges_that_reading_a_cache_asks_for(tmp_path: Path) -> None:
    states = prefix_batch(GEOMETRIES["bundled"], 2, torch.device("cpu"))
    samples = store_samples("int4", 1.0, GEOMETRIES["bundled"], states)
    stored = write_cache(str(tmp_path / "cache"), S3Config(), samples, 0)
    client = Files(stored.uri)
    for run in stored.runs():
        data = bytearray(run.size)
        client.read_range(run.members[0].name, run.members[0].offset, memoryview(data))
        file = (tmp_path / "cache" / run.members[0].name).read_bytes()
        assert data == file[run.members[0].offset : run.members[-1].end]


def test_the_inverse_transform_on_a_core_is_measured_beside_fp32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_ray.lab.restore.core.BYTES", 0)
    monkeypatch.setattr("trio_ray.lab.restore.core.TURN_BYTES", 0)
    options = ["--shapes", "bundled", "--rounds", "1", "--parts", "core"]
    assert main(["lab", "restore", *options, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "restore.json").read_text())["shapes"]["bundled"]["core"]
    assert found["samples"] == 2
    fast, plain = (found["contestants"][name]["rounds"] for name in ("as it is", "fp32 products"))
    assert found["times"] == plain[0] / fast[0]
    assert "| fp32 products |" in capsys.readouterr().out


def test_both_ways_of_the_measurement_restore_the_same_states() -> None:
    batch = StoredSymbols.of(GEOMETRIES["bundled"], COMPONENTS["bundled"], 2, 0)
    states = []
    for codec in (Transform, Fp32Transform):
        targets = [RowTarget.fresh(SegmentShape.of(segment), torch.device("cpu")) for segment in batch.rows.segments]
        batch.inverse(codec(TransformSpec(basis="0" * 32), batch.basis), targets)
        states.append(torch.cat([x.float().flatten() for target in targets for x in (target.keys, target.values)]))
    assert float((states[0] - states[1]).norm() / states[1].norm()) < 1e-3


@pytest.mark.slow
def test_the_command_writes_tables_for_a_folder_and_for_s3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shapes", "bundled", "--samples", "2", "--rounds", "1", "--codecs", "int4", "--store-mb", "1"]
    assert main(["lab", "restore", *options, "--out", str(tmp_path), "--parts", "memory", "store"]) == 0
    record = json.loads((tmp_path / "restore.json").read_text())
    memory, store = record["shapes"]["bundled"]["memory"], record["shapes"]["bundled"]["store"]
    assert memory["prefill"]["times_prefill"] == 1
    assert memory["int4"]["samples_per_s"] > 0
    assert set(store) == {"folder", "s3"}
    assert {"restore", "fetch and check", "pread"} == set(store["folder"]["int4"])
    assert {"restore", "fetch and check", "boto3"} <= set(store["s3"]["int4"])
    assert "| int4 |" in capsys.readouterr().out


@pytest.mark.slow
def test_decoding_and_answering_are_measured_from_a_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_ray.lab.restore.answers.ANSWER_TOKENS", (1, 3))
    monkeypatch.setattr("trio_ray.lab.restore.answers.UNPRUNED_BATCHES", (2,))
    monkeypatch.setattr("trio_ray.lab.restore.decode.UNPRUNED_BATCHES", (2,))
    monkeypatch.setattr("trio_ray.lab.restore.decode.CPU_SIZES", (1, 3))
    monkeypatch.setattr("trio_ray.lab.restore.decode.CPU_STEPS", 64)
    monkeypatch.setattr("trio_ray.lab.restore.bench.find_server", lambda: None)
    options = ["--shapes", "bundled", "--samples", "2", "--rounds", "1", "--codecs", "int4", "--store-mb", "1"]
    assert main(["lab", "restore", *options, "--out", str(tmp_path), "--parts", "decode", "answers", "questions"]) == 0
    results = json.loads((tmp_path / "restore.json").read_text())["shapes"]["bundled"]
    decode = results["decode"]
    assert [times["batch"] for times in decode["generate"]] == [2]
    one, three = decode["steps"]
    assert (one["sequences"], three["sequences"]) == (1, 3)
    for row in (one, three):
        assert row["steps"] == 64
        assert 0 < row["first_limit_ms"] < row["last_limit_ms"], "keys and values grow"
        assert min(row["first_ms"], row["last_ms"]) > 0
    assert three["first_limit_ms"] > one["first_limit_ms"]
    assert set(results["answers"]["answer_tokens"]["3"]) == {"cache in a folder", "pruned anew", "unpruned"}
    assert len(results["questions"]["contestants"]) == 3
    assert "answers/s" in capsys.readouterr().out
