"""The file of a basis: what is written is read, and nothing else is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.kv.bases import make_basis
from trio_ray.kv.codecs.transform_basis import ENTRY, KINDS, TENSORS, BasisError, read_basis, write_basis


@pytest.fixture(scope="module")
def data() -> bytes:
    return write_basis(make_basis(0.05))


def test_a_basis_comes_back(data: bytes) -> None:
    before, after = make_basis(0.05), read_basis(data)
    for name in ("model", "kv_heads", "head_dim", "leads", "rounding", "notes"):
        assert getattr(after, name) == getattr(before, name)
    assert torch.equal(after.cosine, before.cosine)
    assert torch.equal(after.sine, before.sine)
    assert len(after.groups) == len(before.groups)
    for old, new in zip(before.groups, after.groups, strict=True):
        assert (new.first_layer, new.layers) == (old.first_layer, old.layers)
        assert torch.equal(new.exponent, old.exponent)
        for mine, theirs in zip(new.kinds, old.kinds, strict=True):
            assert mine.counts == theirs.counts
            assert all(torch.equal(getattr(mine, name), getattr(theirs, name)) for name in TENSORS)


def test_the_same_basis_gives_the_same_bytes(data: bytes) -> None:
    assert write_basis(make_basis(0.05)) == data
    assert write_basis(read_basis(data)) == data


def changed(data: bytes, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> bytes:
    header_size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + header_size])["__metadata__"][ENTRY])
    tensors = safetensors.torch.load(data)
    change(header, tensors)
    return safetensors.torch.save(tensors, {ENTRY: json.dumps(header)})


Header = dict[str, Any]
Tensors = dict[str, Tensor]

DAMAGE: dict[str, tuple[Callable[[Header, Tensors], Any], str]] = {
    "another version": (lambda h, t: h.update(version=2), "version 2"),
    "a field is missing": (lambda h, t: h.pop("leads"), "leads"),
    "an unknown field": (lambda h, t: h.update(extra=1), "extra"),
    "a size that is no whole number": (lambda h, t: h.update(head_dim=8.0), "head_dim"),
    "a size that is huge": (lambda h, t: h.update(kv_heads=10**9), "kv_heads"),
    "an odd head": (lambda h, t: h.update(head_dim=7), "head_dim"),
    "a model that is no fingerprint": (lambda h, t: h.update(model=3), "model"),
    "no groups": (lambda h, t: h.update(groups=[]), "groups"),
    "a gap between groups": (lambda h, t: h["groups"][1].update(first_layer=2), "groups.1.first_layer"),
    "a huge group": (lambda h, t: h["groups"][1].update(layers=1 << 30), "groups.1.layers"),
    "other counts": (lambda h, t: h["groups"][0].update(image=[1, 1, 1, 1]), "0.image"),
    "negative counts": (lambda h, t: h["groups"][0].update(text=[-1, 5, 0, 0]), "groups.0.text"),
    "too few counts": (lambda h, t: h["groups"][0].update(text=[1]), "groups.0.text"),
    "a tensor is missing": (lambda h, t: t.pop("1.text.matrix"), "1.text.matrix"),
    "an unknown tensor": (lambda h, t: t.update(more=torch.zeros(1)), "more"),
    "another type": (lambda h, t: t.update({"0.image.fold": t["0.image.fold"].float()}), "0.image.fold"),
    "another shape": (lambda h, t: t.update({"0.exponent": t["0.exponent"][1:]}), "0.exponent"),
    "a number out of range": (lambda h, t: t["0.image.fold"].fill_(-1), "0.image.fold"),
    "an exponent out of range": (lambda h, t: t["0.exponent"].fill_(100), "0.exponent"),
    "a mean that is no number": (lambda h, t: t["0.text.mean"].fill_(float("nan")), "0.text.mean"),
    "a table out of range": (lambda h, t: t["cosine"].fill_(32767), "cosine"),
    "no tables": (lambda h, t: (t.pop("cosine"), t.pop("sine")), "cosine"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_basis_is_refused_by_the_name_of_what_is_wrong(data: bytes, name: str) -> None:
    change, names = DAMAGE[name]
    with pytest.raises(BasisError, match=names):
        read_basis(changed(data, change))


def test_a_basis_that_is_cut_off_is_refused(data: bytes) -> None:
    for length in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(BasisError):
            read_basis(data[:length])


def test_random_damage_of_the_header_is_refused_or_harmless(data: bytes) -> None:
    header_size = 8 + int.from_bytes(data[:8], "little")
    chance = random.Random(0)
    for _ in range(300):
        broken = bytearray(data)
        broken[chance.randrange(header_size)] ^= 1 << chance.randrange(8)
        try:
            basis = read_basis(bytes(broken))
        except BasisError:
            continue
        assert len(basis.groups) == 3


def test_every_kind_of_rows_has_its_tensors(data: bytes) -> None:
    names = set(safetensors.torch.load(data))
    assert {f"2.{kind}.{name}" for kind in KINDS for name in TENSORS} <= names
