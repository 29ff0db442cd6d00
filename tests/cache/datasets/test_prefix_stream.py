"""The iterable dataset: each sample once over ranks and workers, in an order that can be taken up again anywhere."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader

from tests.cache.caches import prefix_of, write_cache
from tests.kv.prefixes import assert_same
from tests.seaweed import S3Server
from trio_ray.cache.datasets import Batch, PrefixStream
from trio_ray.cache.fetched import StoredBytes
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cache.unreadable import PrefixMissing
from trio_ray.errors import ConfigError, PrefixError


def keys_of(batches: Iterable[Batch]) -> list[list[str]]:
    return [[row["key"] for row in batch.rows] for batch in batches]


def flat(batches: Iterable[list[str]]) -> list[str]:
    return list(chain.from_iterable(batches))


def loader(stream: PrefixStream, workers: int) -> DataLoader[Batch]:
    return DataLoader(stream, batch_size=None, num_workers=workers)


def test_two_ranks_with_two_workers_each_see_every_sample_once(cache: PrunedCache) -> None:
    seen: list[str] = []
    for rank in range(2):
        stream = PrefixStream(cache, batch_size=3, rank=rank, world_size=2)
        batches = list(loader(stream, workers=2))
        assert len(batches) == len(stream) == 8
        for batch in batches:
            for row, prefix in zip(batch.rows, batch.prefixes, strict=True):
                assert_same(prefix, prefix_of(row["key"]))
        seen += [key for keys in keys_of(batches) for key in keys]
    assert len(seen) == 47
    assert sorted(seen) == sorted(cache.keys())


def test_the_same_over_s3(s3_environment: S3Server) -> None:
    """Each worker opens connections of its own, although the parent's are in use."""
    stored = write_cache(s3_environment.fresh_uri(), [[9, 4], [6]], s3_environment.config)
    stored.keys()
    seen = [
        key
        for rank in range(2)
        for keys in keys_of(loader(PrefixStream(stored, 2, rank=rank, world_size=2), workers=2))
        for key in keys
    ]
    assert Counter(seen) == Counter(stored.keys())


def test_the_number_of_workers_changes_nothing(cache: PrunedCache) -> None:
    alone, many = (keys_of(loader(PrefixStream(cache, 4, seed=3), workers)) for workers in (0, 2))
    assert alone == many
    assert [len(keys) for keys in alone] == [4] * 11 + [3]


def test_an_epoch_is_the_same_again_and_the_next_one_is_not(cache: PrunedCache) -> None:
    stream = PrefixStream(cache, 5)
    first = keys_of(stream)
    assert keys_of(stream) == first == keys_of(PrefixStream(cache, 5))
    stream.set_epoch(1)
    assert keys_of(stream) != first
    assert keys_of(PrefixStream(cache, 5, seed=1)) != first


def test_a_new_epoch_reaches_workers_that_live_on(cache: PrunedCache) -> None:
    stream = PrefixStream(cache, 5)
    batches = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    first = keys_of(batches)
    stream.set_epoch(1)
    second = keys_of(batches)
    assert second != first
    assert sorted(flat(second)) == sorted(flat(first))


def test_without_shuffling_the_order_is_the_caches(cache: PrunedCache) -> None:
    assert flat(keys_of(PrefixStream(cache, 6, shuffle=False))) == cache.keys()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 4, 12])
def test_going_on_from_a_state_leaves_out_nothing_and_repeats_nothing(
    cache: PrunedCache, workers: int, done: int
) -> None:
    stream = PrefixStream(cache, 4)
    stream.set_epoch(2)
    whole = list(stream)
    state = (
        json.loads(json.dumps(whole[done - 1].state)) if done else PrefixStream(cache, 4).state_dict() | {"epoch": 2}
    )
    later = PrefixStream(cache, 4)
    later.load_state_dict(state)
    assert keys_of(loader(later, workers)) == keys_of(whole[done:])


def test_a_state_fits_another_batch_size(cache: PrunedCache) -> None:
    whole = list(PrefixStream(cache, 4))
    later = PrefixStream(cache, 7)
    assert whole[2].state is not None
    later.load_state_dict(whole[2].state)
    assert flat(keys_of(later)) == flat(keys_of(whole[3:]))


def test_state_dict_follows_the_iteration_of_its_own_process(cache: PrunedCache) -> None:
    stream = PrefixStream(cache, 4)
    batches = iter(stream)
    states = [next(batches).state for _ in range(3)]
    assert stream.state_dict() == states[-1]
    next(iter(loader(stream, workers=1)))
    with pytest.raises(RuntimeError, match="state"):
        stream.state_dict()


@pytest.mark.parametrize(
    ("field", "other"),
    [("seed", {"seed": 1}), ("world_size", {"world_size": 2, "rank": 0}), ("shuffle", {"shuffle": False})],
)
def test_a_state_of_another_order_is_refused_by_its_field(
    cache: PrunedCache, field: str, other: dict[str, int]
) -> None:
    state = PrefixStream(cache, 4).state_dict()
    with pytest.raises(ConfigError, match=rf"state\.{field}"):
        PrefixStream(cache, 4, **other).load_state_dict(state)


def test_a_state_of_another_cache_is_refused(cache: PrunedCache, tmp_path: Path) -> None:
    state = PrefixStream(cache, 4).state_dict()
    grown = write_cache(tmp_path / "other", [[3]])
    with pytest.raises(ConfigError, match=r"state\.samples"):
        PrefixStream(grown, 4).load_state_dict(state)


def test_what_is_committed_later_is_not_seen(made: str, tmp_path: Path) -> None:
    """Workers must agree on the samples although they start one after the other."""
    folder = shutil.copytree(made, tmp_path / "cache")
    stream = PrefixStream(PrunedCache(str(folder)), 8)
    write_cache(folder, [[]] * 3 + [[5]])
    assert len(flat(keys_of(loader(stream, workers=2)))) == 47


def test_a_pickled_stream_has_neither_data_nor_credentials(s3_environment: S3Server) -> None:
    stored = write_cache(s3_environment.fresh_uri(), [[9, 4], [6]], s3_environment.config)
    stream = PrefixStream(stored, 2)
    whole = keys_of(stream)  # so that there is something to leave behind
    data = pickle.dumps(stream)
    assert s3_environment.secret_key.encode() not in data
    assert len(data) < 10_000
    assert keys_of(pickle.loads(data)) == whole


@pytest.mark.slow
def test_spawned_workers_read_too(cache: PrunedCache) -> None:
    batches = DataLoader(PrefixStream(cache, 8), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert sorted(flat(keys_of(batches))) == sorted(cache.keys())


def test_rank_and_world_size_come_from_torch_distributed(cache: PrunedCache, tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        assert keys_of(PrefixStream(cache, 4)) == keys_of(PrefixStream(cache, 4, rank=0, world_size=1))
        assert len(PrefixStream(cache, 4, rank=1, world_size=2)) == 6  # what is given counts
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("field", "settings"), [("batch_size", {"batch_size": 0}), ("rank", {"batch_size": 2, "rank": 2, "world_size": 2})]
)
def test_senseless_sizes_are_refused(cache: PrunedCache, field: str, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=field):
        PrefixStream(cache, **settings)


def test_coded_samples_are_the_stored_bytes(cache: PrunedCache) -> None:
    (batch,) = loader(PrefixStream(cache, 47, shuffle=False, restore=False), workers=1)
    for sample in batch.samples:
        assert isinstance(sample, StoredBytes)
        assert (sample.data.dtype, len(sample.data)) == (torch.uint8, sample.row["kv_length"])
    with pytest.raises(TypeError, match="prefetch"):
        _ = batch.prefixes


def test_a_lost_object_is_an_error_or_is_skipped_and_reported(made: str, tmp_path: Path) -> None:
    """A batch is then smaller, and the state still counts what is missing."""
    folder = shutil.copytree(made, tmp_path / "cache")
    stored = PrunedCache(str(folder))
    (folder / stored.rows_at([39])[0]["kv_object"]).unlink()  # the last part, 8 samples
    with pytest.raises(PrefixMissing):
        list(PrefixStream(stored, 10))
    batches = list(loader(PrefixStream(stored, 10, shuffle=False, on_bad="skip"), workers=2))
    assert [len(batch) for batch in batches] == [10, 10, 10, 9, 0]
    errors = [error for batch in batches for error in batch.skipped]
    assert [error.key for error in errors] == stored.keys()[39:]
    assert all(isinstance(error, PrefixError) and error.uri.endswith(".tar") for error in errors)
    assert batches[-1].state is not None
    assert batches[-1].state["place"] == 47
