"""Every example in docs/examples runs as it is printed there, on a small corpus.

They run in one folder, as their pages say, so that a later one finds the corpus and the cache of the first. That one
starts its own Ray, as on a person's machine; the others join a Ray that is there, as on a cluster.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_ray import local_ray

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SAYS = {
    "precompute-a-corpus": "samples",
    "use-a-cache-in-python": "prefixes, state",
    "evaluate-from-a-cache": '"accuracy"',
    "distill-a-student": "held-out questions",
}
"""Name -> words that it prints, in the order in which they run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all examples run."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray with room for one replica."""
    with local_ray(cpus=1) as address:
        yield address


def test_every_example_has_a_page_and_is_known_here() -> None:
    runs = {path.parent.name for path in EXAMPLES.glob("*/run.sh")}
    assert runs == set(SAYS)
    assert all((EXAMPLES / name / "README.md").is_file() for name in runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(
    name: str, folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": binaries, "SCENES": "5", "STEPS": "4"}
    environment.pop("RAY_ADDRESS", None)
    if name in ("evaluate-from-a-cache", "distill-a-student"):
        environment["RAY_ADDRESS"] = request.getfixturevalue("cluster")
    done = subprocess.run(
        ["bash", str(EXAMPLES / name / "run.sh")],
        env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert SAYS[name] in done.stdout
    assert "Traceback" not in done.stderr
    monkeypatch.chdir(folder)
    for notebook in (EXAMPLES / name).glob("*.ipynb"):
        exec(code_of(notebook), {"__name__": "notebook"})


def code_of(notebook: Path) -> str:
    """All code of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_notebooks_have_their_outputs_and_name_no_place_of_the_machine_that_ran_them() -> None:
    notebooks = list(EXAMPLES.glob("*/*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        text = notebook.read_text(encoding="utf-8")
        assert len(text) < 200_000
        assert not re.search(r"/(home|root|tmp|work|Users)/", text)
        for cell in json.loads(text)["cells"]:
            assert cell["cell_type"] != "code" or (cell["outputs"] and cell["execution_count"])
            assert all(output["output_type"] != "error" for output in cell.get("outputs", ()))
