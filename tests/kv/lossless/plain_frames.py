"""Frames of Huffman codes in plain Python, byte by byte: what kernels write and read is held against them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trio_ray.kv.lossless import blocks
from trio_ray.kv.lossless.huffman import HuffmanTable


def stream(data: np.ndarray, table: HuffmanTable) -> bytes:
    """RFC 8878, 4.2.2, in whole numbers of any size: the last byte's code is lowest, a last bit closes it."""
    number = bits = 0
    for byte in data[::-1].tolist():
        number |= int(table.codes[byte]) << bits
        bits += int(table.lengths[byte])
    return (number | 1 << bits).to_bytes(bits // 8 + 1, "little")


def block_of(data: np.ndarray, table: HuffmanTable | None) -> tuple[int, bytes]:
    """Kind and body of a block: codes where they are smaller than the bytes."""
    quarter = (len(data) + 3) // 4
    if table is not None and len(data) > 3 * quarter:
        streams = [stream(data[start : start + quarter], table) for start in range(0, 4 * quarter, quarter)]
        sizes = b"".join(len(each).to_bytes(2, "little") for each in streams[:3])
        coded = table.description + sizes + b"".join(streams)
        body = (2 | 3 << 2 | len(data) << 4 | len(coded) << 22).to_bytes(5, "little") + coded + b"\0"
        if len(body) < len(data):
            return 2, body
    return 0, data.tobytes()


def frame_of(data: np.ndarray, runs: Sequence[int], tables: Sequence[HuffmanTable | None]) -> bytes:
    """A frame as `frames` writes it on a GPU; the bytes themselves where it is not smaller."""
    written, start = [], 0
    for run, table in zip(runs, tables, strict=True):
        own = data[start : start + run]
        fit = table if run >= blocks.LEAST else None
        written += [block_of(own[at : at + blocks.BLOCK], fit) for at in range(0, run, blocks.BLOCK)]
        start += run
    frame = bytes.fromhex("28b52ffda0") + len(data).to_bytes(4, "little")
    for number, (kind, body) in enumerate(written):
        frame += ((number == len(written) - 1) | kind << 1 | len(body) << 3).to_bytes(3, "little") + body
    return frame if len(frame) < len(data) else data.tobytes()


def tables_of(planes: Sequence[np.ndarray], runs: Sequence[Sequence[int]]) -> list[HuffmanTable | None]:
    """A table for each stretch, of all samples in which it is long enough for codes, as a batch has."""
    counts = np.ones((len(runs[0]), 256), np.int64)
    for data, own in zip(planes, runs, strict=True):
        for number, part in enumerate(np.split(data, np.cumsum(own)[:-1])):
            counts[number] += np.bincount(part, minlength=256) * (len(part) >= blocks.LEAST)
    return [HuffmanTable.of(own) for own in counts]
