"""Batches of any size take the kernels that the first one compiled: a compilation takes up to a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tests.kv.bases import make_basis, make_segments
from tests.kv.prefixes import FINGERPRINT, KEY, codec_of, contained, random_prefix
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.codecs.transform import Transform, TransformSpec
from trio_ray.kv.container import CheckedContainer, check_containers, checksum
from trio_ray.kv.encode import code_batch, new_memory
from trio_ray.kv.lossless.frames import FrameMaker
from trio_ray.kv.prefix import Prefix
from trio_ray.kv.restore import start_restore
from trio_ray.kv.target import fresh_targets

GPU = torch.device("cuda")
MOST = 33
SIZES = (1, 2, 3, 5, 7, 15, 16, 17, 31, 32)
CODECS = ["transform", "int4", "int8", "raw"]


def made(codec_name: str) -> tuple[Codec, list[Prefix]]:
    if codec_name == "transform":
        prefix = random_prefix()
        split = [segment.split() for segment in make_segments(MOST, seed=2)]
        return Transform(TransformSpec(basis="0" * 32), make_basis(0.01)), [
            replace(
                prefix,
                segments=tuple(replace(own, position=torch.arange(own.rows, dtype=torch.int32)) for own in segments),
                kept=prefix.kept[:1],
            )
            for segments in zip(*split, strict=True)
        ]
    rows = [(40 + number % 11, 30 + number % 7, 20 + number % 5) for number in range(MOST)]
    return codec_of(codec_name), [
        random_prefix(torch.bfloat16, own, head_dim=16, seed=number) for number, own in enumerate(rows)
    ]


@contextmanager
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from triton.runtime.jit import JITFunction

    compiled: list[str] = []
    compile_ = JITFunction._do_compile

    def noting(self, *arguments, **others):
        compiled.append(f"{self.__name__} {arguments[0] if arguments else others}")
        return compile_(self, *arguments, **others)

    monkeypatch.setattr(JITFunction, "_do_compile", noting)
    yield
    assert not compiled


@pytest.mark.gpu
@pytest.mark.parametrize("codec_name", CODECS)
def test_restore_compiles_its_kernels_once(codec_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, prefixes = made(codec_name)
    containers = [contained(prefix, codec) for prefix in prefixes]

    def restore(first: int, count: int) -> None:
        own = containers[first : first + count]
        checked = check_containers([(KEY, data) for data in own], codec, FINGERPRINT)
        sound = [one for one in checked if isinstance(one, CheckedContainer)]
        assert len(sound) == count
        start_restore(sound, codec, GPU, fresh_targets(GPU), [checksum(data) for data in own]).finish()

    restore(0, 8)
    with nothing_is_compiled(monkeypatch):
        for count in SIZES:
            restore(MOST - count, count)


@pytest.mark.gpu
@pytest.mark.parametrize("codec_name", CODECS)
def test_storing_compiles_its_kernels_once(codec_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, prefixes = made(codec_name)
    there = [prefix.on_device(GPU) for prefix in prefixes]
    maker = FrameMaker()

    def store(first: int, count: int) -> None:
        code_batch(PrefixBatch.of(there[first : first + count]), codec, maker).on_host(new_memory)
        torch.cuda.synchronize()

    store(0, 8)
    with nothing_is_compiled(monkeypatch):
        for count in SIZES:
            store(MOST - count, count)
