"""A selector of the user's own, as docs/selectors.md shows it, works in a job and in the lab."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpora import samples, write_tar
from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import load_config
from trio_ray.errors import ConfigError, IdentityMismatch
from trio_ray.lab.accuracy.methods import method_config
from trio_ray.method.method import Method
from trio_ray.method.selectors.catalogue import AbsentSelector
from trio_ray.model.replica import Replica
from trio_ray.precompute.plan import plan_job

PAGE = Path(__file__).parents[2] / "docs" / "selectors.md"
NAME = "my_selectors:LongRows"


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's example as a module in the current folder."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_selectors.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield folder
    sys.modules.pop("my_selectors", None)


def test_a_job_selects_with_it_and_the_manifest_names_it(
    tmp_path: Path, model_folders: dict[str, Path], llama: Replica
) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(3))
    settings = {"method__selector": NAME, "method__settings": {"power": 1}}
    config = job_config(model_folders["llama"], tar, tmp_path / "cache", **settings)
    run_here(config, llama)
    cache = PrunedCache(str(tmp_path / "cache"))
    assert len(cache) == 3
    stored = cache.dataset.identity["method"]
    assert (stored["selector"], stored["settings"]) == (NAME, {"threshold": 2.0, "power": 1.0})
    assert stored["prune_points"] == [1, 4]  # those of its shape, 2 and 16 of 32, for 8 layers
    assert cache.method == config.method.build(8)
    assert {len(row["kept"]) for row in cache.table.to_pylist()} == {2}
    with pytest.raises(IdentityMismatch) as caught:
        plan_job(job_config(model_folders["llama"], tar, tmp_path / "cache", method__selector=NAME), with_gpu=False)
    assert caught.value.field == "method.settings.power"


def test_the_lab_takes_it_by_its_name() -> None:
    method = method_config(NAME, 0.3).build(16)
    assert type(method.selector).__name__ == "LongRows"
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"power": 0}, "method.settings.power", "greater than 0"),
        ({"force": 1}, "method.settings.force", "its settings are: threshold, power"),
    ],
)
def test_its_settings_are_held_to_what_it_declares(settings: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(values={"method.selector": NAME, "method.settings": settings})
    assert caught.value.field == field


def test_a_reader_without_the_module_still_knows_the_method(module: Path) -> None:
    stored = method_config(NAME, 0.3).build(16).to_dict()
    sys.modules.pop("my_selectors")
    (module / "my_selectors.py").unlink()
    method = Method.from_dict(stored)
    assert isinstance(method.selector, AbsentSelector)
    assert method.to_dict() == stored
