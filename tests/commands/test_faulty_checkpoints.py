"""A checkpoint that cannot be run ends each command that needs one in one sentence, with code 2 and without a cache."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.checkpoints import change_json, read_tensors, write_weights
from tests.corpora import samples, write_tar
from tests.faulty_checkpoints import FAULTS as CHECKPOINT_FAULTS
from tests.precompute.runs import job_config
from trio_ray.cli import main
from trio_ray.precompute.plan import plan_job
from trio_ray.store.dataset import load_dataset
from trio_ray.store.local import LocalStore

COMMANDS = {
    "precompute": ["--input", "CORPUS", "--output", "CACHE"],
    "estimate": ["--input", "CORPUS", "--measure"],
    "calibrate": ["--input", "CORPUS", "--out", "CACHE.basis"],
}
FORTY = list(CHECKPOINT_FAULTS)[:80:2]
FAULTS = ["no_projector", "image_token", "no_template", "quantised", "config_is_a_list"]


def break_it(fault: str, folder: Path) -> str:
    """Break a checkpoint; the setting that the sentence must name."""
    if fault == "no_projector":
        write_weights(folder, {name: t for name, t in read_tensors(folder).items() if "projector" not in name}, 2)
    elif fault == "image_token":
        change_json(folder / "config.json", image_token_index=7)
    elif fault == "quantised":
        change_json(folder / "config.json", quantization_config={"quant_method": "awq"})
    elif fault == "config_is_a_list":
        (folder / "config.json").write_text("[]")
    else:
        (folder / "chat_template.json").unlink()
        return "prompt.template"
    return "model.name"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_checkpoint_ends_a_command_before_anything_is_made(
    fault: str, command: str, standins: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(standins["vicuna"], tmp_path / "model"))
    field = break_it(fault, folder)
    corpus, cache = str(write_tar(tmp_path / "a.tar", samples(2))), str(tmp_path / "cache")
    options = [option.replace("CORPUS", corpus).replace("CACHE", cache) for option in COMMANDS[command]]
    assert main([command, *options, "--model", str(folder)]) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert shown[-1].startswith(f"trio-ray: {field}: ")
    assert not [line for line in shown if "Traceback" in line]
    assert not list(tmp_path.glob("cache*"))


def test_forty_faulty_checkpoints_end_precompute_in_a_sentence_each_and_leave_nothing(
    standins: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, cache, folder = str(write_tar(tmp_path / "a.tar", samples(1))), tmp_path / "cache", tmp_path / "model"
    chosen = list(FORTY)
    assert len(chosen) == 40
    for fault in chosen:
        change, words = CHECKPOINT_FAULTS[fault]
        shutil.copytree(standins["vicuna"], folder)
        change(folder)
        assert main(["precompute", "--input", corpus, "--output", str(cache), "--model", str(folder)]) == 2, fault
        shown = capsys.readouterr()
        lines = [line for line in shown.err.splitlines() if line.strip()]
        assert lines[0] == "checking"
        assert lines[-1].startswith("trio-ray: model.name: "), (fault, shown.err)
        assert re.search(words, lines[-1]), (fault, lines[-1])
        assert "Traceback" not in shown.err + shown.out, fault
        assert not cache.exists(), fault
        shutil.rmtree(folder)


def test_a_manifest_names_the_model_and_with_targets_its_stop_tokens(standins: dict[str, Path], tmp_path: Path) -> None:
    corpus = write_tar(tmp_path / "a.tar", samples(2))
    plan_job(job_config(standins["llama3"], corpus, tmp_path / "cache", cache__targets="top_k"), with_gpu=False)
    manifest = load_dataset(LocalStore(tmp_path / "cache"))
    assert manifest.model == str(standins["llama3"])
    assert len(manifest.identity["cache"]["targets_stop_tokens"]) == 2
    other = Path(shutil.copytree(standins["llama3"], tmp_path / "other"))
    change_json(other / "generation_config.json", eos_token_id=manifest.identity["cache"]["targets_stop_tokens"][0])
    plan = plan_job(job_config(other, corpus, tmp_path / "second", cache__targets="top_k"), with_gpu=False)
    assert plan.dataset.identity_hash != manifest.identity_hash
    assert plan.dataset.identity["model"] == manifest.identity["model"]
