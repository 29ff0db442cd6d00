"""Checksums of stored bytes on a GPU: xxh3-128, as `kv.container.checksum` gives it.

Imported only where there is a GPU and Triton. xxh3 mixes its eight sums after every block of 1,024 bytes, one block
behind the other; what a block adds to them depends on nothing before it. So one kernel works out what each block adds,
for all blocks of all samples at once, and a second one mixes these in turn, in one program for each sample. The
algorithm, for inputs of more than 240 bytes, and its constants:
https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

# ruff: noqa: N803 - constants of a kernel are written in capitals
# mypy: disable-error-code="no-untyped-def,import-not-found,import-untyped"

from __future__ import annotations

import functools

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

SHORTEST = 241
"""Bytes; what is shorter has another algorithm."""
BLOCKS = 4
"""Blocks that a program adds up."""
MIXED_AT_ONCE = 32
"""Blocks whose sums are loaded together, so that few of them have to be waited for."""

_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e"
    "e03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d"
    "8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc"
    "8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_BEGINNING = (
    0xC2B2AE3D, 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
    0x85EBCA77C2B2AE63, 0x85EBCA77, 0x27D4EB2F165667C5, 0x9E3779B1,
)  # fmt: skip
"""What the eight sums begin with."""

_BLOCK = 1024
STRIPES, BLOCK_BYTES, STRIPE_BYTES = tl.constexpr(16), tl.constexpr(_BLOCK), tl.constexpr(64)
BLOCK_WORDS, STRIPE_WORDS = tl.constexpr(128), tl.constexpr(8)
LOW_HALF = tl.constexpr(0xFFFFFFFF)
OF_LENGTH, OF_LENGTH_HIGH = tl.constexpr(0x9E3779B185EBCA87), tl.constexpr(0xC2B2AE3D27D4EB4F)
SCRAMBLE, AVALANCHE = tl.constexpr(0x9E3779B1), tl.constexpr(0x165667919E3779F9)
SCRAMBLE_AT, LAST_AT, LOW_AT, HIGH_AT, BEGINNING_AT = (tl.constexpr(place) for place in (16, 24, 32, 40, 48))
"""Where in `_words` the keys are: of stripe s from s on; of the scramble; of the last stripe; of the two halves of the
result; and what the sums begin with."""


def differing(source: Tensor, begins: Tensor, lengths: Tensor, longest: int, wanted: Tensor) -> Tensor:
    """Which samples have not the checksum that they should have.

    Args:
        source: flat uint8 on the GPU, a multiple of 8 bytes from an address that is one.
        begins, lengths: (B,) int64, each sample's bytes in it, which no other has; `begins` are multiples of 8, and
            lengths `SHORTEST` or more.
        longest: of the lengths.
        wanted: (B, 2) int64, the low and the high half of each checksum (`halves`).

    Returns:
        (B,) int32, 1 for a sample whose checksum is another.
    """
    found = torch.empty(len(begins), dtype=torch.int32, device=source.device)
    if not len(begins):
        return found
    blocks = len(source) // _BLOCK
    added = torch.empty(blocks, 8, dtype=torch.int64, device=source.device)
    words, table = source.view(torch.int64), _words(source.device)
    with torch.cuda.device_of(source):
        if blocks:
            # The first axis alone can be longer than 65,535.
            _add_up[(triton.cdiv(min(blocks, longest // _BLOCK), BLOCKS), len(begins))](
                words, begins, lengths, table, added, UNIT=BLOCKS, num_warps=4
            )
        _compare[(len(begins),)](
            words, source, begins, lengths, wanted, table, added, found, UNIT=MIXED_AT_ONCE, num_warps=1
        )
    return found


def halves(checksum: str) -> tuple[int, int]:
    """The low and the high half of a checksum in hexadecimal, as numbers of 64 bits with a sign."""
    high, low = (int.from_bytes(bytes.fromhex(half), "big", signed=True) for half in (checksum[:16], checksum[16:]))
    return low, high


@functools.cache
def _words(device: torch.device) -> Tensor:
    """(56,) int64 on the device: the keys and the beginning."""

    def keys(first: int, count: int) -> list[int]:
        return [int.from_bytes(_SECRET[at : at + 8], "little") for at in range(first, first + 8 * count, 8)]

    words = [*keys(0, 24), *keys(121, 8), *keys(11, 8), *keys(117, 8), *_BEGINNING]
    return torch.from_numpy(np.array(words, np.uint64).view(np.int64)).to(device)


@triton.jit
def _add_up(words, begins, lengths, table, added, UNIT: tl.constexpr):
    """Write what each block adds to the eight sums, for `UNIT` blocks of one sample, to (blocks, 8) `added`.

    A sample's rows there begin at the block that its first byte lies in, so no two samples have one in common.
    """
    unit, sample = tl.program_id(0), tl.program_id(1)
    begin, length = tl.load(begins + sample), tl.load(lengths + sample)
    blocks = (length - 1) // BLOCK_BYTES
    if unit * UNIT < blocks:
        lane = 2 * tl.arange(0, 4)[:, None] + tl.arange(0, 2)[None, :]
        stripe = tl.arange(0, STRIPES)[:, None, None]
        keys = tl.load(table + stripe + lane[None, :, :]).to(tl.uint64, bitcast=True)
        own = (stripe * STRIPE_WORDS + lane[None, :, :])[None, :, :, :]
        block = (unit * UNIT + tl.arange(0, UNIT)).to(tl.int64)
        there = block[:, None, None, None] < blocks
        data = tl.load(words + begin // 8 + block[:, None, None, None] * BLOCK_WORDS + own, mask=there, other=0)
        data = data.to(tl.uint64, bitcast=True)
        keyed = data ^ keys[None, :, :, :]
        sums = tl.sum((keyed & LOW_HALF) * (keyed >> 32), 1) + _of_neighbour(tl.sum(data, 1), 2)
        row = begin // BLOCK_BYTES + block[:, None, None]
        to = added + row * STRIPE_WORDS + lane[None, :, :]
        tl.store(to, sums.to(tl.int64, bitcast=True), mask=block[:, None, None] < blocks)


@triton.jit
def _compare(words, octets, begins, lengths, wanted, table, added, found, UNIT: tl.constexpr):
    """`found` for one sample. The eight sums are (4, 2), as each takes its neighbour's input too."""
    sample = tl.program_id(0)
    begin, length = tl.load(begins + sample), tl.load(lengths + sample)
    lane = 2 * tl.arange(0, 4)[:, None] + tl.arange(0, 2)[None, :]
    stripe = tl.arange(0, STRIPES)[:, None, None]
    keys = tl.load(table + stripe + lane[None, :, :]).to(tl.uint64, bitcast=True)
    scramble = tl.load(table + SCRAMBLE_AT + lane).to(tl.uint64, bitcast=True)
    sums = tl.load(table + BEGINNING_AT + lane).to(tl.uint64, bitcast=True)

    first = words + begin // 8
    blocks = (length - 1) // BLOCK_BYTES
    together = blocks // UNIT * UNIT
    rows = added + begin // BLOCK_BYTES * STRIPE_WORDS + lane
    for done in range(0, together, UNIT):
        for number in tl.static_range(UNIT):  # unrolled, so that all loads come before the first sum
            sums = _mixed(sums, tl.load(rows + (done + number) * STRIPE_WORDS), scramble)
    for done in range(together, blocks):
        sums = _mixed(sums, tl.load(rows + done * STRIPE_WORDS), scramble)

    left = (length - 1 - blocks * BLOCK_BYTES) // STRIPE_BYTES
    data = tl.load(first + blocks * BLOCK_WORDS + stripe * STRIPE_WORDS + lane[None, :, :], mask=stripe < left, other=0)
    data = data.to(tl.uint64, bitcast=True)
    keyed = data ^ keys
    product = tl.where(stripe < left, (keyed & LOW_HALF) * (keyed >> 32), 0)
    sums += tl.sum(product, 0) + _of_neighbour(tl.sum(data, 0), 1)

    octet = tl.arange(0, 8)[None, None, :]
    last = tl.load(octets + begin + length - STRIPE_BYTES + 8 * lane[:, :, None] + octet).to(tl.uint64)
    data = tl.sum(last << (8 * octet).to(tl.uint64), 2)
    keyed = data ^ tl.load(table + LAST_AT + lane).to(tl.uint64, bitcast=True)
    sums += (keyed & LOW_HALF) * (keyed >> 32) + _of_neighbour(data, 1)

    size = length.to(tl.uint64)
    low = _merged(sums, table + LOW_AT + lane, size * OF_LENGTH)
    high = _merged(sums, table + HIGH_AT + lane, ~(size * OF_LENGTH_HIGH))
    wanted_low = tl.load(wanted + 2 * sample).to(tl.uint64, bitcast=True)
    wanted_high = tl.load(wanted + 2 * sample + 1).to(tl.uint64, bitcast=True)
    tl.store(found + sample, ((low != wanted_low) | (high != wanted_high)).to(tl.int32))


@triton.jit
def _mixed(sums, block, scramble):
    """The sums behind a block."""
    sums += block.to(tl.uint64, bitcast=True)
    return (sums ^ (sums >> 47) ^ scramble) * SCRAMBLE


@triton.jit
def _of_neighbour(sums, AXIS: tl.constexpr):
    """The other one of each two along the last axis."""
    return tl.expand_dims(tl.sum(sums, AXIS), AXIS) - sums


@triton.jit
def _merged(sums, keys, start):
    """Half of the result, of (4, 2) sums."""
    keyed = sums ^ tl.load(keys).to(tl.uint64, bitcast=True)
    even = tl.arange(0, 2)[None, :] == 0
    one = tl.sum(tl.where(even, keyed, 0), 1)
    other = tl.sum(tl.where(even, 0, keyed), 1)
    result = start + tl.sum(tl.umulhi(one, other) ^ (one * other), 0)
    result = (result ^ (result >> 37)) * AVALANCHE
    return result ^ (result >> 32)
