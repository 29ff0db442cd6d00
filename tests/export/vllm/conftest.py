"""100 questions about 25 rendered scenes, four caches of them, and our own engine's answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.export.vllm.ours import Caches, Ours, make_caches
from tests.export.vllm.requests import engine_options
from tests.export.vllm.server import Server
from trio_ray.cli import main
from trio_ray.config import ModelConfig
from trio_ray.lab.s3_server import S3Server
from trio_ray.lab.scenes.corpus import write_corpus
from trio_ray.model.replica import Replica

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
"""The engine runs in the tests' own process: it starts sooner, and fails where one sees it."""

SCENES, QUESTIONS = 25, 4


@pytest.fixture(scope="session")
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    """The server, with its credentials in the environment for the whole session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_PROFILE", raising=False)
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        yield s3_server


@pytest.fixture(scope="session")
def replica() -> Replica:
    """The bundled model in our own engine."""
    return Replica.load(ModelConfig(dtype="float32"), device=torch.device("cpu"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard of all questions."""
    folder = tmp_path_factory.mktemp("scenes")
    manifest = write_corpus(folder, SCENES, SCENES * QUESTIONS, questions_per_image=QUESTIONS)
    assert len(manifest.keys) == SCENES * QUESTIONS
    (shard,) = manifest.shards
    return shard


@pytest.fixture(scope="session")
def caches(corpus: Path, replica: Replica, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Caches:
    """Uniform caches of both levels and both scopes; keys and values on S3, embeddings in a folder."""
    return make_caches(corpus, replica, s3, tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="session")
def ours(replica: Replica, caches: Caches) -> Ours:
    """What our own engine answers."""
    return Ours(replica, caches)


@pytest.fixture(scope="session")
def server(caches: Caches, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vLLM's HTTP server over the cache of scope image; it has only begun to start."""
    folder = tmp_path_factory.mktemp("server")
    exported = ["export", caches.embeds_image.uri, "--to", "vllm", "--out", str(folder / "out"), "--limit", "1"]
    assert main(exported) == 0
    running = Server(engine_options(caches.kv_image.uri), folder / "out" / "chat_template.jinja", folder / "log.txt")
    yield running
    running.stop()
