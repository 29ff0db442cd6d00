"""Containers of made-up prefixes, as a job on this device would store them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trio_ray.estimate.made_up_states import Geometry
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.codecs.registry import full_spec, make_codec
from trio_ray.kv.container import write_container
from trio_ray.kv.encode import code_batch, new_memory
from trio_ray.kv.lossless.frames import frame_maker
from trio_ray.lab.codecs.made_up_bases import fit_transform
from trio_ray.lab.codecs.recipes import TRANSFORM, Fit
from trio_ray.store.dataset import hash_identity


@dataclass(frozen=True)
class StoredSamples:
    """Different samples in one codec's containers.

    Attributes:
        name: of the codec.
        codec: itself.
        basis: its calibrated basis, if it has one.
        fingerprint: of the cache that they are for, which has the identity that `identity_of` gives.
        keys: of the samples.
        containers: their bytes.
        plain_bytes: of all their keys and values, in 16 bit.
    """

    name: str
    codec: Codec
    basis: bytes | None
    fingerprint: str
    keys: tuple[str, ...]
    containers: tuple[memoryview, ...]
    plain_bytes: int

    @property
    def stored_bytes(self) -> int:
        """Of all containers."""
        return sum(map(len, self.containers))


def identity_of(codec: Codec) -> dict[str, Any]:
    """The identity of a cache of made-up prefixes: as much as reading needs."""
    return {"model": {"dtype": "bfloat16"}, "cache": {"level": "kv", "codec": codec.spec, "top_k": 8}}


def store_samples(name: str, ratio: float, geometry: Geometry, states: PrefixBatch) -> StoredSamples:
    """Compress the states with a codec and put them into containers.

    Args:
        name: of the codec; transform gets a basis that makes its containers `ratio` times smaller than 16 bit.
        ratio: see `name`.
        geometry: of the states.
        states: the samples, on the device whose jobs they stand for.
    """
    ends = states.split()
    basis = None
    codec: Codec
    if name == TRANSFORM:
        measured = PrefixBatch.of([ends[0], ends[-1]])
        codec, basis = fit_transform({"name": name}, Fit(ratio=ratio), geometry, measured)
    else:
        codec = make_codec(full_spec(name))
    return store_prefixes(name, codec, basis, states)


def store_prefixes(name: str, codec: Codec, basis: bytes | None, states: PrefixBatch) -> StoredSamples:
    """Put prefixes into containers, compressed where they are."""
    maker = frame_maker(codec.settings, states.top_ids.device)
    coded = code_batch(states, codec, maker).on_host(new_memory)
    fingerprint = hash_identity(identity_of(codec))
    keys = tuple(f"s{number:05d}" for number in range(len(states.lengths)))
    containers = tuple(
        write_container(sample, codec.settings, key, fingerprint)
        for key, sample in zip(keys, coded.split(), strict=True)
    )
    plain = sum(prefix.kv_bytes for prefix in states.split())
    return StoredSamples(name, codec, basis, fingerprint, keys, containers, plain)


def batches_of(samples: StoredSamples, largest_bytes: int) -> list[Sequence[int]]:
    """The samples' numbers, cut where a reader cuts batches: at `largest_bytes` of stored bytes."""
    batches: list[list[int]] = []
    size = 0
    for number, container in enumerate(samples.containers):
        if not batches or size + len(container) > largest_bytes:
            batches.append([])
            size = 0
        batches[-1].append(number)
        size += len(container)
    return [*batches]
