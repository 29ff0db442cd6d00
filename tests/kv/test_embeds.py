"""Stored embeddings come back as they were, and nothing else is taken for them."""

from __future__ import annotations

import json
import random

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import load, save

from tests.kv.prefixes import FINGERPRINT, KEY
from tests.precompute.contract import assert_valid, described, prefix_header
from trio_ray.kv.embeds import Embeds, EmbedsBatch, read_embeds, write_embeds
from trio_ray.kv.header import ContainerError, FingerprintMismatch

BAD_HEADERS = [
    ("version", 1),
    ("rows", 8),
    ("rows", 9.0),
    ("rows", True),
    ("width", 17),
    ("length", 12),
    ("length", 0),
    ("dtype", "float32"),
    ("dtype", "int8"),
    ("rows", None),
]


def some_embeds(dtype: torch.dtype = torch.bfloat16) -> Embeds:
    position = torch.tensor([0, 1, 3, 4, 7, 8, 9, 11, 12], dtype=torch.int32)
    rows = torch.randn(9, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    return Embeds(13, rows, torch.arange(9, dtype=torch.int32) + 3, position, position < 4)


def stored(dtype: torch.dtype = torch.bfloat16) -> bytes:
    return bytes(write_embeds(some_embeds(dtype), KEY, FINGERPRINT))


def changed(field: str, value: object) -> bytes:
    """With another header."""
    data = stored()
    header = {**prefix_header(data), field: value}
    if value is None:
        del header[field]
    return save(load(data), {"trio_ray": json.dumps(header)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_they_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    truth, found = some_embeds(dtype), read_embeds(stored(dtype), key=KEY, fingerprint=FINGERPRINT)
    assert found.length == truth.length
    for name in ("rows", "token_ids", "position", "text"):
        assert torch.equal(getattr(found, name), getattr(truth, name))
        assert getattr(found, name).dtype == getattr(truth, name).dtype


def test_a_batch_splits_into_its_samples() -> None:
    one = some_embeds()
    batch = EmbedsBatch(
        (13, 20),
        (4, 5),
        one.rows,
        one.token_ids,
        torch.cat([one.position[:4], one.position[:5]]),
        torch.ones(9, dtype=torch.bool),
    )
    first, second = batch.split()
    assert (first.length, second.length) == (13, 20)
    assert torch.equal(second.rows, one.rows[4:])
    assert torch.equal(second.token_ids, one.token_ids[4:])
    assert torch.equal(second.position, one.position[:5])


def test_another_sample_or_cache_is_refused_by_name() -> None:
    with pytest.raises(ContainerError, match=KEY):
        read_embeds(stored(), key="another")
    with pytest.raises(FingerprintMismatch) as caught:
        read_embeds(stored(), fingerprint="f" * 64)
    assert caught.value.field == "fingerprint"


@pytest.mark.parametrize(("field", "value"), BAD_HEADERS)
def test_a_header_that_the_tensors_do_not_bear_out_is_refused(field: str, value: object) -> None:
    with pytest.raises(ContainerError):
        read_embeds(changed(field, value))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("position", torch.arange(9, dtype=torch.int32).flip(0)),
        ("position", torch.arange(9, dtype=torch.int32) - 1),
        ("token_ids", torch.arange(9, dtype=torch.int64)),
        ("token_ids", torch.arange(9, dtype=torch.int32) - 1),
        ("text", torch.full((9,), 2, dtype=torch.uint8)),
        ("text", torch.ones(8, dtype=torch.uint8)),
        ("extra", torch.ones(1)),
    ],
)
def test_tensors_that_cannot_be_are_refused(name: str, tensor: torch.Tensor) -> None:
    header = json.dumps(prefix_header(stored()))
    with pytest.raises(ContainerError):
        read_embeds(save({**load(stored()), name: tensor}, {"trio_ray": header}))


def test_no_cut_and_no_changed_header_byte_crashes() -> None:
    """The body is under the row's checksum; the header must not lead a reader astray even without it."""
    sound = stored()
    for length in range(0, len(sound), 7):
        with pytest.raises(ContainerError):
            read_embeds(sound[:length])
    generator = random.Random(0)
    for _ in range(300):
        data = bytearray(sound)
        data[generator.randrange(len(sound) - 9 * 16 * 2)] ^= 1 << generator.randrange(8)
        try:
            read_embeds(bytes(data), key=KEY, fingerprint=FINGERPRINT)
        except ContainerError:
            continue


def test_the_header_is_the_described_one_and_no_other() -> None:
    header, schema = prefix_header(stored()), described("embeds.schema.json")
    assert_valid(header, "embeds")
    assert set(schema["properties"]) == set(schema["required"]) == set(header)
    validator = Draft202012Validator(schema)
    assert not validator.is_valid({**header, "extra": 1})
    for name in header:
        assert not validator.is_valid({key: value for key, value in header.items() if key != name}), name
