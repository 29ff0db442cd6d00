"""A replica's threads follow the CPUs that it has beside its GPU."""

from __future__ import annotations

import pytest

from trio_ray.cluster.host_share import cpus_to_count_on, share_of
from trio_ray.config import load_config


@pytest.mark.parametrize(
    ("reserved", "gpus", "node", "cpus"),
    [
        (1.0, 1.0, {"CPU": 64.0, "GPU": 4.0}, 16),  # what is reserved is for Ray's bookkeeping; the rest would be idle
        (8.0, 1.0, {"CPU": 16.0, "GPU": 4.0}, 8),
        (1.0, 0.5, {"CPU": 16.0, "GPU": 2.0}, 4),
        (3.5, 0.0, {"CPU": 16.0}, 3),
        (3.0, 0.0, {"CPU": 64.0, "GPU": 4.0}, 3),
        (0.5, 0.0, {}, 1),
    ],
)
def test_the_share_of_the_cpus_is_that_of_the_gpus_or_what_is_reserved(
    reserved: float, gpus: float, node: dict[str, float], cpus: int
) -> None:
    assert share_of(reserved, gpus, node) == cpus


def test_outside_ray_it_is_what_a_replica_reserves() -> None:
    assert cpus_to_count_on(load_config(values={"replicas.cpus": 5}).replicas) == 5


def test_threads_are_those_that_are_set_or_follow_the_cpus() -> None:
    default = load_config().pipeline
    assert (default.decoders(1), default.encoders(1)) == (2, 2)
    assert (default.decoders(16), default.encoders(16)) == (4, 8)
    told = load_config(values={"pipeline.decode_threads": 3, "pipeline.encode_threads": 1}).pipeline
    assert (told.decoders(64), told.encoders(64)) == (3, 1)
