"""Huffman codes as zstd's frames hold them: from how often each byte occurs to codes and the bytes that describe them.

Section numbers are those of RFC 8878 (https://www.rfc-editor.org/rfc/rfc8878).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_BITS = 11
"""Longest code that a frame may use (4.2.1)."""

MAX_DIRECT = 128
"""Weights that can be written as they are, four bits each; more must go through FSE (4.2.1.1)."""

FSE_LOG = 6
FSE_MIN_LOG = 5
MAX_DESCRIPTION = 128


@dataclass(frozen=True)
class HuffmanTable:
    """Codes for bytes.

    Attributes:
        lengths: (256,) uint8, bits of each byte's code; 0 for bytes that have none.
        codes: (256,) uint16, the codes, first bit highest.
        description: what a block's literals begin with, up to 128 bytes.
    """

    lengths: NDArray[np.uint8]
    codes: NDArray[np.uint16]
    description: bytes

    @classmethod
    def of(cls, counts: NDArray[np.int64]) -> HuffmanTable | None:
        """The best code of at most `MAX_BITS` for bytes that occur so often.

        Args:
            counts: (256,); a byte with 0 gets no code.

        Returns:
            None where there is no such code, or a frame cannot hold it: less than two bytes occur, or more than
            `MAX_DIRECT` ahead of the last have codes of one length, as where all 256 occur alike.
        """
        lengths = code_lengths(counts)
        description = _describe(lengths) if np.count_nonzero(lengths) > 1 else None
        return None if description is None else cls(lengths, _canonical(lengths), description)


def code_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(256,) bits of an optimal code of at most `MAX_BITS`, by package-merge (Larmore and Hirschberg 1990)."""
    present = np.flatnonzero(counts)
    lengths = np.zeros(256, np.uint8)
    if len(present) < 2:
        return lengths
    # Of each round: the worth of its coins, ascending, and which of them are packages of two of the round before.
    order = np.argsort(counts[present], kind="stable")
    single = counts[present][order]
    worth = single
    rounds = []
    for _ in range(MAX_BITS - 1):
        pairs = len(worth) // 2 * 2
        coins = np.concatenate([single, worth[0:pairs:2] + worth[1:pairs:2]])
        merged = np.argsort(coins, kind="stable")
        worth = coins[merged]
        rounds.append(merged >= len(single))
    # Each single coin that is taken, in whatever round, adds a bit to its byte; they are taken from the cheapest on.
    bits = np.zeros(len(present), np.uint8)
    taken = 2 * len(present) - 2
    for is_package in reversed(rounds):
        packages = int(np.count_nonzero(is_package[:taken]))
        bits[: taken - packages] += 1
        taken = 2 * packages
    bits[:taken] += 1
    lengths[present[order]] = bits
    return lengths


def _canonical(lengths: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Codes from their lengths: the longest come first, and among equals the smaller byte (4.2.1.3)."""
    codes = np.zeros(256, np.uint16)
    code = 0
    for bits in range(int(lengths.max()), 0, -1):
        own = np.flatnonzero(lengths == bits)
        codes[own] = code + np.arange(len(own))
        code = (code + len(own)) >> 1
    return codes


def _describe(lengths: NDArray[np.uint8]) -> bytes | None:
    """Weights of all bytes but the last that has a code, whose weight follows from theirs (4.2.1)."""
    last = int(np.flatnonzero(lengths)[-1])
    longest = int(lengths.max())
    weights = [longest + 1 - bits if bits else 0 for bits in lengths[:last].tolist()]
    coded = _fse(weights)
    direct = 1 + (len(weights) + 1) // 2 if len(weights) <= MAX_DIRECT else None
    if coded is not None and len(coded) < MAX_DESCRIPTION and (direct is None or len(coded) + 1 < direct):
        return bytes([len(coded)]) + coded
    if direct is None:
        return None
    padded = [*weights, 0]
    pairs = (16 * first + second for first, second in zip(padded[0:-1:2], padded[1::2], strict=False))
    return bytes([MAX_DIRECT - 1 + len(weights), *pairs])


def _fse(weights: Sequence[int]) -> bytes | None:
    """Weights by FSE with two states in turns (4.2.1.2); None where it cannot code them: all are alike, or too few."""
    counts = np.bincount(weights)
    if len(weights) < 3 or counts.max() == len(weights):
        return None
    shares = _shares(counts, 1 << FSE_LOG)
    cells = _cells(shares)
    bits = _Bits()
    states = [0, 0]
    for place in reversed(range(len(weights))):
        weight, turn = weights[place], place % 2
        if place >= len(weights) - 2:
            # The first cell: leaving it takes a bit at least, by whose lack the decoder knows that it is done.
            states[turn] = cells[weight][0]
            continue
        leaves = (states[turn] // shares[weight]).bit_length() - 1
        bits.add(states[turn] & ((1 << leaves) - 1), leaves)
        states[turn] = cells[weight][(states[turn] >> leaves) - shares[weight]]
    for turn in (1, 0):
        bits.add(states[turn] & ((1 << FSE_LOG) - 1), FSE_LOG)
    bits.add(1, 1)
    return _fse_header(shares) + bits.done()


def _shares(counts: NDArray[np.int64], total: int) -> list[int]:
    """Counts in proportion, `total` together, each that occurs at least 1."""
    shares = [max(1, round(float(count) * total / counts.sum())) if count else 0 for count in counts]
    while (excess := sum(shares) - total) != 0:
        # From those, or to those, whom it changes least.
        largest = max(range(len(shares)), key=lambda value: shares[value])
        shares[largest] -= min(excess, shares[largest] // 2) if excess > 0 else excess
    return shares


def _cells(shares: Sequence[int]) -> list[list[int]]:
    """By value its cells of the state table, ascending, numbered from the table's size on (4.1.1)."""
    size = sum(shares)
    step, place = (size >> 1) + (size >> 3) + 3, 0
    cells: list[list[int]] = []
    for share in shares:
        own = []
        for _ in range(share):
            own.append(size + place)
            place = (place + step) % size
        cells.append(sorted(own))
    return cells


def _fse_header(shares: Sequence[int]) -> bytes:
    """The distribution, in as few bits as what is left of it allows (4.1.1)."""
    bits = _Bits()
    bits.add(FSE_LOG - FSE_MIN_LOG, 4)
    threshold = sum(shares)
    left, width, value = threshold + 1, threshold.bit_length(), 0
    while left > 1:
        share = shares[value]
        spare = 2 * threshold - 1 - left
        left -= share
        number = share + 1
        if number >= threshold:
            number += spare
        bits.add(number, width - (number < spare))
        value += 1
        if not share:
            zeros = next(n for n, later in enumerate(shares[value:]) if later)
            for _ in range(zeros // 3):
                bits.add(3, 2)
            bits.add(zeros % 3, 2)
            value += zeros
        while left < threshold:
            width -= 1
            threshold >>= 1
    return bits.done()


class _Bits:
    """Bits one behind the other, lowest first."""

    def __init__(self) -> None:
        self._number = 0
        self._count = 0

    def add(self, value: int, count: int) -> None:
        self._number |= value << self._count
        self._count += count

    def done(self) -> bytes:
        return self._number.to_bytes((self._count + 7) // 8, "little")
