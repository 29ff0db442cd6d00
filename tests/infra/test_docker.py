"""The images' recipes: hadolint's rules, and what hadolint cannot know of this repository."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.infra.files import INFRA, REPOSITORY

IMAGES = ["Dockerfile", "Dockerfile.cpu"]


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a recipe, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (INFRA / "docker" / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def default(name: str, argument: str) -> str:
    """The default of a build argument."""
    (value,) = [text.split("=", 1)[1] for word, text in instructions(name) if word == "ARG" and f"{argument}=" in text]
    return value


@pytest.mark.parametrize("name", IMAGES)
def test_a_recipe_keeps_hadolints_rules(name: str) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, "--no-color", INFRA / "docker" / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_copied_exists_and_reaches_the_build(name: str) -> None:
    copies = [text.split() for word, text in instructions(name) if word == "COPY" and "--from=" not in text]
    sources = {path for copy in copies for path in copy[:-1] if not path.startswith("--")}
    assert sources >= {"pyproject.toml", "README.md", "trio_ray", "jobs"}
    let_in = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources <= let_in
    assert all((REPOSITORY / path).exists() for path in let_in)


@pytest.mark.parametrize("name", IMAGES)
def test_the_image_runs_as_the_pods_user_and_holds_no_weights(name: str) -> None:
    assert [text for word, text in instructions(name) if word == "USER"] == ["1000"]
    assert "--uid 1000" in (INFRA / "docker" / name).read_text()
    assert not re.search(r"huggingface|snapshot_download|from_pretrained", (INFRA / "docker" / name).read_text())


def test_the_gpu_image_installs_what_the_package_allows() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [text for name in ("flash", "fa3") for text in project["optional-dependencies"][name]]
    allowed = {Requirement(text).name: Requirement(text).specifier for text in [*project["dependencies"], *extras]}
    assert default("Dockerfile", "TORCH_VERSION") in allowed["torch"]
    assert default("Dockerfile", "FLASH_ATTN_VERSION") in allowed["flash-attn"]
    assert {"flash", "fa3"} <= set(project["optional-dependencies"])


def test_flash_attention_is_compiled_for_the_chip_that_is_asked_for() -> None:
    recipe = instructions("Dockerfile")
    (build,) = [index for index, (word, text) in enumerate(recipe) if word == "RUN" and "--no-build-isolation" in text]
    assert "FLASH_ATTENTION_FORCE_BUILD=TRUE" in recipe[build][1]  # or its setup would look for a wheel elsewhere
    stage = max(index for index, (word, _) in enumerate(recipe[:build]) if word == "FROM")
    arguments = [text.split("=")[0] for word, text in recipe[stage:build] if word == "ARG"]
    assert {"FLASH_ATTN_CUDA_ARCHS", "MAX_JOBS"} <= set(arguments)  # build arguments are the compiler's environment
    assert "devel" in recipe[stage][1]
