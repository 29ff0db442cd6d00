"""10,000 random damages to the objects of stored caches, each of them noticed and named when something is read."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kv.prefixes import codec_of, contained, random_prefix
from tests.store.caches import row, shard
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.errors import IdentityMismatch, ObjectDamaged, PrefixError
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.header import ContainerError
from trio_ray.kv.restore import read_container
from trio_ray.store.dataset import create_or_check
from trio_ray.store.local import LocalStore
from trio_ray.store.parts import PartWriter

ON_PREFIXES, ON_RECORDS, ON_CONTAINERS = 9_000, 500, 500
SAMPLES = 4
RECORDS = (("table", "data", "*.parquet"), ("commit", "commits", "*.json"), ("dataset", "", "dataset.json"))

Damage = Callable[[bytes, random.Random, bytes], bytes]


def flip(data: bytes, dice: random.Random, other: bytes) -> bytes:
    """One bit."""
    damaged = bytearray(data)
    damaged[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(damaged)


def truncate(data: bytes, dice: random.Random, other: bytes) -> bytes:
    """Everything behind some place."""
    return data[: dice.randrange(len(data))]


def swap(data: bytes, dice: random.Random, other: bytes) -> bytes:
    """A run of bytes, up to all of them, is that of another object at the same place."""
    while True:
        start, stop = sorted(dice.sample(range(len(data) + 1), 2))
        damaged = data[:start] + other[start:stop].ljust(stop - start, b"\0") + data[stop:]
        if damaged != data:
            return damaged


DAMAGES: list[Damage] = [flip, truncate, swap]


def write_cache(folder: Path, codec: Codec, seed: int) -> PrunedCache:
    """A cache of one part with made-up samples."""
    store = LocalStore(folder)
    dataset = create_or_check(store, {"cache": {"codec": codec.spec}, "seed": seed}, part_samples=SAMPLES)
    writer = PartWriter(store, dataset, shard(), 0, "run")
    for number in range(SAMPLES):
        prefix = random_prefix(torch.bfloat16, (90, 40, 20), (1, 4, 4), 4, 32, seed=10 * seed + number)
        key = f"sample{number}"
        writer.add({**row(key, number), "codec": codec.name}, contained(prefix, codec, key, dataset.identity_hash))
    writer.commit(last=True)
    return PrunedCache(str(folder))


@pytest.fixture(scope="module", params=["raw", "int4"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two caches with the same names of samples and other contents; the first one is damaged."""
    folder = tmp_path_factory.mktemp("damage")
    codec = codec_of(request.param)
    for seed, name in enumerate(("cache", "other")):
        write_cache(folder / name, codec, seed)
    return folder / "cache", folder / "other"


def test_damaged_prefixes_are_refused_by_key_and_object(pair: tuple[Path, Path]) -> None:
    """The bytes of one sample in its tar: a read of it names both, a read of its neighbours goes on."""
    dice = random.Random(1)
    cache, other = PrunedCache(str(pair[0])), PrunedCache(str(pair[1]))
    rows, others = cache.table.to_pylist(), other.table.to_pylist()
    file = pair[0] / rows[0]["kv_object"]
    whole, foreign = file.read_bytes(), (pair[1] / others[0]["kv_object"]).read_bytes()
    for number in range(ON_PREFIXES // 2):
        target, strange = dice.choice(rows), dice.choice(others)
        start, stop = target["kv_offset"], target["kv_offset"] + target["kv_length"]
        replacement = foreign[strange["kv_offset"] : strange["kv_offset"] + strange["kv_length"]]
        harm = DAMAGES[number % len(DAMAGES)]
        damaged = harm(whole[start:stop], dice, replacement)
        file.write_bytes(whole[:start] + damaged + (whole[stop:] if len(damaged) == stop - start else b""))
        with pytest.raises(PrefixError) as caught:
            cache.prefix(target)
        assert (caught.value.key, caught.value.uri) == (target["key"], str(file))
        assert target["key"] in str(caught.value)
        assert str(file) in str(caught.value)
    file.write_bytes(whole)
    assert len(list(cache.stream())) == SAMPLES


def test_damaged_tables_and_records_are_refused_by_their_name(pair: tuple[Path, Path]) -> None:
    dice = random.Random(2)
    names = {kind: next((pair[0] / folder).rglob(glob)) for kind, folder, glob in RECORDS}
    strange = {kind: next((pair[1] / folder).rglob(glob)).read_bytes() for kind, folder, glob in RECORDS}
    for number in range(ON_RECORDS // 2):
        kind = dice.choice(list(names))
        whole = names[kind].read_bytes()
        names[kind].write_bytes(DAMAGES[number % len(DAMAGES)](whole, dice, strange[kind]))
        with pytest.raises((ObjectDamaged, IdentityMismatch, PrefixError)) as caught:
            read_all(pair[0])
        assert str(pair[0]) in str(caught.value)
        names[kind].write_bytes(whole)
    read_all(pair[0])


def read_all(folder: Path) -> list[dict[str, Any]]:
    """What a downstream job does: open the cache and read every sample."""
    return [item.row for item in PrunedCache(str(folder)).stream(threads=1)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_damaged_container_raises_a_typed_error_or_stays_a_prefix_of_the_same_shape(
    pair: tuple[Path, Path], device: str
) -> None:
    """Where no checksum is asked, the container alone never crashes: what it cannot refuse are numbers."""
    dice = random.Random(3)
    cache, other = PrunedCache(str(pair[0])), PrunedCache(str(pair[1]))
    row, strange = cache.table.to_pylist()[0], other.table.to_pylist()[0]
    whole, foreign = (
        (folder / item["kv_object"]).read_bytes()[item["kv_offset"] : item["kv_offset"] + item["kv_length"]]
        for folder, item in zip(pair, (row, strange), strict=True)
    )
    truth = cache.prefix(row)
    refused = 0
    for number in range(ON_CONTAINERS // 2):
        damaged = DAMAGES[number % len(DAMAGES)](whole, dice, foreign)
        try:
            prefix = read_container(
                damaged, cache.codec, key=row["key"], fingerprint=cache.dataset.identity_hash, device=device
            )
        except ContainerError:
            refused += 1
        else:
            assert len(damaged) == len(whole)
            assert [s.keys.shape for s in prefix.segments] == [s.keys.shape for s in truth.segments]
    assert refused > ON_CONTAINERS / 2 / 3


def test_a_commit_record_of_another_cache_is_refused_by_its_name(tmp_path: Path) -> None:
    """It is whole in itself; only its identity tells that it does not belong here."""
    codec = codec_of("raw")
    for seed, name in enumerate(("cache", "other")):
        write_cache(tmp_path / name, codec, seed)
    mine, foreign = (next((tmp_path / name / "commits").rglob("*.json")) for name in ("cache", "other"))
    mine.write_bytes(foreign.read_bytes())
    with pytest.raises(ObjectDamaged, match="another cache") as caught:
        PrunedCache(str(tmp_path / "cache"))
    assert mine.name in str(caught.value)
