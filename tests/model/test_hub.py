"""Models of the hub: downloaded once, with their size told, by the commit that a revision means; and each reason why
the hub does not give one is a sentence of its own. Every case runs in a process of its own, as the hub client reads its
environment when it is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.hub_server import COMMITS, hub_server

LOAD = """
import contextlib, json, os, sys
from trio_ray.cluster.actors import with_downloads
from trio_ray.cluster.progress import progress_display
from trio_ray.errors import ConfigError
from trio_ray.model.hub import download_model
out = []
if "IN_AN_ACTOR" in os.environ:
    ((name, revision),) = json.loads(sys.argv[1])
    *news, folder = with_downloads(lambda: str(download_model(name, revision)))
    print(json.dumps([folder, news[0].what, news[0].done, news[0].size]))
    sys.exit()
with progress_display() if "IN_A_COMMAND" in os.environ else contextlib.nullcontext():
    for name, revision in json.loads(sys.argv[1]):
        try:
            out.append(str(download_model(name, revision)))
        except ConfigError as error:
            out.append(str(error))
print(json.dumps(out))
"""


def load(models: list[tuple[str, str | None]], home: Path, endpoint: str, **environment: str) -> tuple[list[str], str]:
    """The folder or the sentence for each of the models, and what was shown meanwhile."""
    given = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    given |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(models)], env={**os.environ, **given, **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), run.stderr


@pytest.fixture
def repository(standins: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Two commits of one model; the later one has other files too, which no replica needs."""
    old = Path(shutil.copytree(standins["72b"], tmp_path / "old"))
    new = Path(shutil.copytree(old, tmp_path / "new"))
    (new / "README.md").write_text("later")
    (new / "generation_config.json").write_text('{"eos_token_id": 1}')
    return {COMMITS["main"]: new, COMMITS["old"]: old}


def test_a_model_is_downloaded_once_with_its_size_told_and_its_commit_named(
    repository: dict[str, Path], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with hub_server({"owner/model": repository}) as (endpoint, asked):
        (folder, again), shown = load([("owner/model", None), ("owner/model", None)], home, endpoint)
        assert folder == again
        assert Path(folder).name == COMMITS["main"]
        assert {file.name for file in Path(folder).iterdir()} == {
            file.name for file in repository[COMMITS["main"]].iterdir()
        } - {"README.md"}
        assert shown.count("downloading owner/model (14 files): 0.00 GB") == 1
        assert "100%" in shown, "a bar counts the bytes"
        commits = [("owner/model", "old"), ("owner/model", COMMITS["main"])]
        (old, pinned), shown = load(commits, home, endpoint, IN_A_COMMAND="1")
        phases = shown.splitlines()
        assert phases[0].startswith("downloading owner/model (")
        assert phases[1:] == ["checking the model"], "the display of a command shows it, and no bar beside it"
        assert (Path(old).name, pinned) == (COMMITS["old"], folder)
        loaded, shown = load([("owner/model", None)], tmp_path / "other", endpoint, IN_AN_ACTOR="1")
        assert loaded[1:3] == ["owner/model (14 files)", 0]
        assert int(loaded[3]) > 100_000
        assert "downloading" not in shown, "an actor's download is told to its job, and not in the actor's log"
        asked.clear()
        load([("owner/model", COMMITS["main"])], home, endpoint)
        assert not [path for path in asked if "owner/model" in path], (
            "what a commit names never changes, so the hub need not be asked"
        )
    offline, _ = load([("owner/model", None), ("owner/model", COMMITS["old"])], home, endpoint)
    assert offline == [folder, old], "an earlier download is taken where the hub cannot be reached"
    (kept,), _ = load([("owner/model", None)], home, endpoint, HF_HUB_OFFLINE="1")
    assert kept == folder


def test_each_reason_why_the_hub_gives_no_model_is_told_apart(repository: dict[str, Path], tmp_path: Path) -> None:
    models: list[tuple[str, str | None]] = [
        ("owner/misspelt", None), ("owner/gated", None), ("owner/model", "v9"), ("owner/broken", None),
        ("owner/forbidden", None), ("no name!", None),
    ]  # fmt: skip
    with hub_server({"owner/model": repository}) as (endpoint, _):
        misspelt, gated, revision, broken, forbidden, no_name = load(models, tmp_path / "home", endpoint)[0]
    assert "neither a folder here nor a model on" in misspelt
    assert "check the spelling" in misspelt
    assert "is gated: accept its terms" in gated
    assert "HF_TOKEN" in gated
    assert revision.startswith("model.revision: 'owner/model' has no revision 'v9'")
    assert "answered with HTTP status 503" in broken
    assert "answered with HTTP status 403; check HF_TOKEN" in forbidden
    assert "neither a folder nor a hub name" in no_name
    (unreachable,), _ = load([("owner/model", None)], tmp_path / "home", "http://127.0.0.1:9")
    assert "cannot be reached" in unreachable
    assert "check the network" in unreachable
    (offline,), _ = load([("owner/model", None)], tmp_path / "home", "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids to download it" in offline
    for sentence in (misspelt, gated, revision, broken, forbidden, no_name, unreachable, offline):
        assert "\n" not in sentence
        assert "Traceback" not in sentence
