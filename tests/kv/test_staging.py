"""Containers on their way to a GPU."""

from __future__ import annotations

import torch

from tests.kv.prefixes import CODECS, codec_of, contained, random_prefix
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.container import CheckedContainer, check_containers
from trio_ray.kv.header import ZSTD
from trio_ray.kv.lossless.zstd import decompress_planes
from trio_ray.kv.staging import stage


def checked(containers: list[bytes], codec: Codec) -> list[CheckedContainer]:
    """Containers whose headers are sound."""
    outcomes = check_containers([(None, data) for data in containers], codec)
    return [outcome for outcome in outcomes if isinstance(outcome, CheckedContainer)]


def test_frames_of_zstd_are_decompressed_side_by_side_and_a_damaged_one_is_its_samples_fault() -> None:
    codec = codec_of(CODECS["mixed"])
    whole = contained(random_prefix(rows=(90, 60, 50)), codec)
    damaged = bytearray(whole)
    (sound,) = checked([whole], codec)
    smallest = int((sound.stored / sound.layout.sizes).argmin())
    assert sound.stored[smallest] < sound.layout.sizes[smallest], "it is a frame"
    damaged[sound.begins[smallest]] ^= 1
    samples = checked([whole, bytes(damaged), whole], codec)
    assert samples[0].lossless == ZSTD
    staged = stage(samples, torch.device("cpu"))
    assert [bool(fault) for fault in staged.faults] == [False, True, False]
    for number in (0, 2):
        for tensor, size in enumerate(samples[number].layout.sizes.tolist()):
            begin = staged.tensors.begins[tensor, number]
            assert staged.tensors.stored[tensor, number] == size
            planes = decompress_planes(samples[number].stored_bytes(tensor), size)
            assert staged.source[begin : begin + size].tolist() == planes.tolist()
