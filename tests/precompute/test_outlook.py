"""How far a run is: told by what its replicas have read, whichever of them is lost on the way."""

from __future__ import annotations

import pytest

from trio_ray.precompute.outlook import Outlook, ShardAdvanced
from trio_ray.source.sample import Shard


def shard(name: str, uri: str, size: int) -> Shard:
    return Shard(name, uri, size, "e", "webdataset")


TAR, HALF, OTHER_HALF = shard("a", "a.tar", 600), shard("b0", "b.parquet", 400), shard("b1", "b.parquet", 400)


def test_shards_count_by_their_bytes_and_those_underway_by_what_was_read_of_them() -> None:
    outlook = Outlook([TAR, HALF, OTHER_HALF], [TAR, HALF])  # b1 was complete before
    assert (outlook.share, outlook.uncommitted, outlook.expected_bytes(0, 0)) == (0.0, 0, None)
    outlook.advanced(0, ShardAdvanced("a", 30, 0.5))
    outlook.advanced(1, ShardAdvanced("b0", 5, 0.25))
    assert outlook.share == pytest.approx((300 + 50) / 800)
    assert outlook.uncommitted == 35
    assert outlook.expected_bytes(1000, 10) == int(1000 / 10 * 45 / (350 / 800))


def test_what_a_lost_replica_had_not_committed_is_lost_and_a_new_attempt_counts_alone() -> None:
    outlook = Outlook([TAR, HALF], [TAR, HALF])
    outlook.advanced(0, ShardAdvanced("a", 30, 0.5))
    outlook.advanced(0, ShardAdvanced("a", 40, 0.6))
    assert outlook.uncommitted == 40
    outlook.lost(0)
    assert (outlook.share, outlook.uncommitted) == (0.0, 0)
    outlook.advanced(1, ShardAdvanced("a", 10, 0.1))
    outlook.ended("a")
    assert (outlook.share, outlook.uncommitted) == (0.6, 0)
    outlook.ended("b0")
    assert outlook.share == 1.0
