"""Huffman codes are optimal, fit a zstd frame, and are described so that zstd itself reads what they code."""

from __future__ import annotations

import heapq

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kv.lossless.plain_frames import stream
from trio_ray.kv.lossless.huffman import MAX_BITS, MAX_DESCRIPTION, HuffmanTable, code_lengths


def frame(data: np.ndarray, table: HuffmanTable) -> bytes:
    """A frame of one block, which needs not be smaller than the data."""
    quarter = (len(data) + 3) // 4
    streams = [stream(data[start : start + quarter], table) for start in range(0, 4 * quarter, quarter)]
    coded = table.description + b"".join(len(each).to_bytes(2, "little") for each in streams[:3]) + b"".join(streams)
    literals = (2 | 3 << 2 | len(data) << 4 | len(coded) << 22).to_bytes(5, "little")
    block = literals + coded + b"\0"
    size = len(data).to_bytes(4, "little")
    return bytes.fromhex("28b52ffda0") + size + (1 | 2 << 1 | len(block) << 3).to_bytes(3, "little") + block


def check(data: np.ndarray, table: HuffmanTable) -> bool:
    """Whether zstd reads the frame; False where it is larger than a frame may be."""
    framed = frame(data, table)
    if len(framed) - 12 >= len(data):
        return False
    assert pa.Codec("zstd").decompress(framed, decompressed_size=len(data)).to_pybytes() == data.tobytes()
    return True


SPREADS = {
    "steep": lambda random, many: np.exp(-np.arange(many) / random.uniform(0.3, 8)),
    "wide": lambda random, many: np.exp(-np.arange(many) / random.uniform(8, 60)),
    "alike": lambda random, many: np.ones(many),
    "few": lambda random, many: random.dirichlet(np.full(many, 0.05)),
    "any": lambda random, many: random.dirichlet(np.full(many, 3.0)),
}


@pytest.mark.parametrize("every_byte", [False, True], ids=["seen bytes", "every byte"])
@pytest.mark.parametrize("spread", SPREADS)
def test_zstd_reads_what_a_table_codes(spread: str, every_byte: bool) -> None:
    random = np.random.default_rng(len(spread))
    read = 0
    for _ in range(120):
        many = int(random.integers(2, 257))
        shares = SPREADS[spread](random, many)
        bytes_ = random.permutation(256)[:many] if random.random() < 0.5 else np.arange(many)
        data = bytes_[random.choice(many, int(random.integers(64, 3000)), p=shares / shares.sum())].astype(np.uint8)
        counts = np.bincount(data, minlength=256) + every_byte
        table = HuffmanTable.of(counts)
        if table is None:
            # Less than two bytes, or nothing that a code could gain.
            present = np.count_nonzero(counts)
            assert present < 2 or len(set(code_lengths(counts)[counts > 0])) == 1
        else:
            assert len(table.description) <= MAX_DESCRIPTION
            read += check(data, table)
    assert read > 40, "most of the data could be coded"


@given(st.lists(st.integers(0, 10**7), min_size=2, max_size=256))
def test_codes_are_whole_and_no_longer_than_allowed(counts: list[int]) -> None:
    padded = np.array(counts + [0] * (256 - len(counts)), np.int64)
    lengths = code_lengths(padded).astype(int)
    if np.count_nonzero(padded) < 2:
        assert not lengths.any()
        return
    assert np.array_equal(lengths > 0, padded > 0)
    assert lengths.max() <= MAX_BITS
    assert (0.5 ** lengths[lengths > 0]).sum() == 1


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=12))
def test_no_code_is_shorter_in_all(counts: list[int]) -> None:
    """Against Huffman's own algorithm, which knows no limit; so few bytes never reach it."""
    heap = list(counts)
    heapq.heapify(heap)
    best = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        best += both
        heapq.heappush(heap, both)
    padded = np.array(counts + [0] * (256 - len(counts)), np.int64)
    assert int((padded * code_lengths(padded)).sum()) == best


def test_rare_bytes_get_codes_of_the_longest_kind() -> None:
    """Fibonacci's numbers would make one code longer than the other without end."""
    counts = np.zeros(256, np.int64)
    counts[:30] = [1, *np.cumsum([1, *(round(1.618**n) for n in range(28))])]
    lengths = code_lengths(counts)
    assert lengths.max() == MAX_BITS
    table = HuffmanTable.of(counts)
    assert table is not None
    data = np.repeat(np.arange(30), 12).astype(np.uint8)
    assert check(np.concatenate([data, np.full(4000, 29, np.uint8)]), table)


@pytest.mark.parametrize("present", [0, 1, 256])
def test_what_no_frame_can_describe_has_no_table(present: int) -> None:
    """All 256 alike would need 255 weights in half a byte each; a frame has room for 128."""
    counts = np.zeros(256, np.int64)
    counts[:present] = 5
    assert HuffmanTable.of(counts) is None
