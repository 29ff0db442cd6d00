"""A cluster is asked for the memory of a replica's device before a cache is made."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from tests.checkpoints import change_json
from tests.corpora import samples, write_tar
from tests.precompute.runs import job_config
from trio_ray.cluster.replica_memory import replica_memory
from trio_ray.cluster.session import ray_session
from trio_ray.config import ReplicasConfig
from trio_ray.errors import ConfigError
from trio_ray.model.device_memory import host_memory
from trio_ray.precompute.plan import plan_job

pytestmark = pytest.mark.slow


def test_a_model_that_fits_on_no_node_is_refused_before_there_is_a_cache(
    standins: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(standins["72b"], tmp_path / "model", ignore=shutil.ignore_patterns("model*")))
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change_json(folder / "config.json", text_config=text | {"intermediate_size": 1 << 36})
    (folder / "random_weights.json").write_text('{"seed": 0}')
    config = job_config(folder, write_tar(tmp_path / "a.tar", samples(2)), tmp_path / "cache")
    with ray_session(1):
        assert replica_memory(ReplicasConfig(cpus=10_000), gpus=0, timeout_s=1) is None, "no node has room for it"
        with pytest.raises(ConfigError, match=r"^model\.name: .* does not fit: .* billion weights take ") as caught:
            plan_job(config, with_gpu=False)
        assert f"the node {socket.gethostname()} has {host_memory() / 1e9:.1f} GB" in str(caught.value), (
            "what a node has said"
        )
    assert not (tmp_path / "cache" / "dataset.json").exists()
