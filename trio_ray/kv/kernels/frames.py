"""Bytes to zstd frames on a GPU: one kernel counts bytes, one measures the streams of coded bits, one writes frames.

Imported only where there is a GPU and Triton. A program handles one of the four streams of a block. Bits of different
programs meet in the same word, so all are joined to memory of zeros by atomic OR. Section numbers are those of RFC 8878
(https://www.rfc-editor.org/rfc/rfc8878).
"""

# ruff: noqa: N803 - constants of a kernel are written in capitals
# mypy: disable-error-code="no-untyped-def,import-not-found,import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trio_ray.kv.lossless.blocks import (
    BLOCK_HEADER,
    CODED,
    FRAME_HEADER,
    FRAME_MAGIC,
    LITERALS_HEADER,
    MOST_CONTENT,
    RAW,
    SEQUENCES,
    STREAM_SIZES,
    STREAMS,
    Blocks,
    DeviceTables,
)
from trio_ray.kv.lossless.huffman import MAX_DESCRIPTION

PLAIN = 0
"""What becomes of a block beside `RAW` and `CODED`: bytes of a sample that is stored without a frame."""

TILE = 4096
GROUPS = 512
"""Of four bytes each, handled at once by a program."""

FOUR = tl.constexpr(STREAMS)
AS_IT_IS, BY_CODES = tl.constexpr(PLAIN), tl.constexpr(CODED)
LONGEST = tl.constexpr(MAX_DESCRIPTION)
OF_FRAME, OF_BLOCK = tl.constexpr(FRAME_HEADER), tl.constexpr(BLOCK_HEADER)
OF_LITERALS, OF_SIZES = tl.constexpr(LITERALS_HEADER), tl.constexpr(STREAM_SIZES)
NO_SEQUENCES = tl.constexpr(SEQUENCES)
MAGIC = tl.constexpr(FRAME_MAGIC)


def count_bytes(stored: Tensor, blocks: Blocks, tables: int) -> Tensor:
    """(tables, 256) int64, how often each byte occurs in the blocks that are for each of so many tables."""
    counts = torch.zeros((tables, 256), dtype=torch.int64, device=stored.device)
    with torch.cuda.device_of(stored):
        _count[(len(blocks.start) * STREAMS,)](stored, blocks.start, blocks.length, blocks.table, counts, SIZE=TILE)
    return counts


def make_frames(stored: Tensor, blocks: Blocks, tables: DeviceTables) -> tuple[Tensor, Tensor]:
    """Frames of all samples, one behind the other, or the bytes themselves where frames would not be smaller.

    Args:
        stored: flat uint8, what frames are made of, or what is stored where they would not be smaller.
        blocks: that cover it.
        tables: that the blocks name.

    Returns:
        (len(stored) and up to 4,) uint8, and (B,) int64, where each sample's end.
    """
    bits = torch.zeros((len(blocks.start), STREAMS), dtype=torch.int32, device=stored.device)
    data = torch.zeros(len(stored) // 4 + 1, dtype=torch.int32, device=stored.device)
    grid = (len(blocks.start) * STREAMS,)
    with torch.cuda.device_of(stored):
        _measure[grid](stored, blocks.start, blocks.length, blocks.table, tables.codes, bits, SIZE=TILE)
        offset, mode, body, ends = _places(blocks, tables, bits)
        _write[grid](
            stored, blocks.start, blocks.length, blocks.table, blocks.sample, blocks.first, blocks.pieces,
            offset, mode, body, bits, tables.codes, tables.descriptions, tables.described, data, SIZE=GROUPS,
        )  # fmt: skip
    return data.view(torch.uint8), ends


def _places(blocks: Blocks, tables: DeviceTables, bits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By block where it goes, what becomes of it and the bytes behind its header; and where each sample's frame ends.

    Args:
        bits: (n, 4) int32 of the streams; 0 where a block has no table.
    """
    described = torch.where(blocks.table >= 0, tables.described[blocks.table], 0)
    # A last bit marks where a stream begins, which is read from its end.
    coded = LITERALS_HEADER + described + STREAM_SIZES + SEQUENCES + ((bits + 8) // 8).sum(1)
    is_coded = (described > 0) & (coded < blocks.length)
    body = torch.where(is_coded, coded, blocks.length)
    behind = torch.nn.functional.pad((body + BLOCK_HEADER).cumsum(0), (1, 0))
    ahead = behind[blocks.first]
    framed = FRAME_HEADER + ahead[1:] - ahead[:-1]
    is_plain = (framed >= blocks.pieces) | (blocks.pieces > MOST_CONTENT)
    size = torch.where(is_plain, blocks.pieces, framed)
    ends = size.cumsum(0)
    sample = blocks.sample
    begin, piece = (ends - size)[sample], (blocks.pieces.cumsum(0) - blocks.pieces)[sample]
    in_frame = FRAME_HEADER + behind[:-1] - ahead[sample]
    offset = begin + torch.where(is_plain[sample], blocks.start - piece, in_frame)
    mode = torch.where(is_plain[sample], PLAIN, torch.where(is_coded, CODED, RAW))
    return offset, mode, body, ends


@triton.jit
def _stream(start, length, block):
    """Where one of a block's streams begins in the stored bytes, and its bytes."""
    quarter = (tl.load(length + block) + FOUR - 1) // FOUR
    begin = (tl.program_id(0) % FOUR) * quarter
    count = tl.maximum(tl.minimum(quarter, tl.load(length + block) - begin), 0)
    return tl.load(start + block) + begin, count


@triton.jit
def _count(stored, start, length, table, counts, SIZE: tl.constexpr):
    block = tl.program_id(0) // FOUR
    own = tl.load(table + block)
    begin, count = _stream(start, length, block)
    if own >= 0:
        found = tl.zeros((256,), tl.int32)
        done = 0
        while done < count:
            place = done + tl.arange(0, SIZE)
            byte = tl.load(stored + begin + place, mask=place < count, other=0).to(tl.int32)
            found += tl.histogram(byte, 256, mask=place < count)
            done += SIZE
        tl.atomic_add(counts + own * 256 + tl.arange(0, 256), found.to(tl.int64), sem="relaxed")


@triton.jit
def _measure(stored, start, length, table, codes, bits, SIZE: tl.constexpr):
    block = tl.program_id(0) // FOUR
    own = tl.load(table + block)
    begin, count = _stream(start, length, block)
    if own >= 0:
        total = tl.zeros((SIZE,), tl.int32)
        done = 0
        while done < count:
            place = done + tl.arange(0, SIZE)
            byte = tl.load(stored + begin + place, mask=place < count, other=0).to(tl.int32)
            total += tl.load(codes + own * 256 + byte, mask=place < count, other=0) >> 16
            done += SIZE
        tl.store(bits + tl.program_id(0), tl.sum(total))


@triton.jit
def _put(data, bit, value, mask):
    """Numbers of up to 63 bits to where their lowest bits belong. The words of `data` are 0 there before."""
    word = data + (bit >> 5)
    shift = bit & 31
    rest = value >> (32 - shift)
    tl.atomic_or(word, (value << shift).to(tl.int32), mask=mask, sem="relaxed")
    tl.atomic_or(word + 1, rest.to(tl.int32), mask=mask & (rest > 0), sem="relaxed")
    tl.atomic_or(word + 2, (rest >> 32).to(tl.int32), mask=mask & ((rest >> 32) > 0), sem="relaxed")


@triton.jit
def _put_number(data, bit, value):
    """One number."""
    none = tl.zeros((1,), tl.int64)
    _put(data, none + bit, none + value, none == 0)


@triton.jit
def _put_bytes(stored, begin, count, data, byte, SIZE: tl.constexpr):
    """Bytes as they are."""
    done = 0
    while done < count:
        group = done // 4 + tl.arange(0, SIZE)
        value = tl.zeros((SIZE,), tl.int64)
        for number in tl.static_range(4):
            place = 4 * group + number
            found = tl.load(stored + begin + place, mask=place < count, other=0)
            value |= found.to(tl.int64) << (8 * number)
        _put(data, byte * 8 + 32 * group.to(tl.int64), value, 4 * group < count)
        done += 4 * SIZE


@triton.jit
def _put_codes(stored, begin, count, codes, data, byte, SIZE: tl.constexpr):
    """Codes of bytes, the last byte's first, and a last bit (4.2.2)."""
    bit = byte * 8
    done = 0
    while done < count:
        group = done // 4 + tl.arange(0, SIZE)
        value, bits = tl.zeros((SIZE,), tl.int64), tl.zeros((SIZE,), tl.int64)
        for number in tl.static_range(4):
            place = 4 * group + number
            found = tl.load(stored + begin + count - 1 - place, mask=place < count, other=0).to(tl.int32)
            entry = tl.load(codes + found, mask=place < count, other=0).to(tl.int64)
            value |= (entry & 65535) << bits
            bits += entry >> 16
        _put(data, bit + tl.cumsum(bits) - bits, value, bits > 0)
        bit += tl.sum(bits)
        done += 4 * SIZE
    _put_number(data, bit, 1)


@triton.jit
def _write(
    stored, start, length, table, sample, first, pieces, offset, mode, body, bits, codes, descriptions,
    described, data, SIZE: tl.constexpr,
):  # fmt: skip
    block, stream = tl.program_id(0) // FOUR, tl.program_id(0) % FOUR
    begin, count = _stream(start, length, block)
    place, what, size = tl.load(offset + block), tl.load(mode + block), tl.load(body + block)
    if what == AS_IT_IS:
        _put_bytes(stored, begin, count, data, place + begin - tl.load(start + block), SIZE)
    else:
        if stream == 0:
            whose = tl.load(sample + block)
            if tl.load(first + whose) == block:
                _put_number(data, (place - OF_FRAME) * 8, MAGIC)
                _put_number(data, (place - 4) * 8, tl.load(pieces + whose))
            is_last = (tl.load(first + whose + 1) == block + 1).to(tl.int64)
            _put_number(data, place * 8, is_last | (what - 1) * 4 | size << 3)
        if what == BY_CODES:
            own = tl.load(table + block)
            about = tl.load(described + own)
            number = tl.arange(0, FOUR)
            sizes = ((tl.load(bits + block * FOUR + number) + 8) // 8).to(tl.int64)
            ahead = tl.sum(tl.where(number < stream, sizes, 0))
            place += OF_BLOCK
            streams = place + OF_LITERALS + about + OF_SIZES
            _put_codes(stored, begin, count, codes + own * 256, data, streams + ahead, SIZE)
            if stream == 0:
                # Kind and form of the literals, 2 bits each, then 18 bits each of their size and of what they take.
                literals = size - OF_LITERALS - NO_SEQUENCES
                _put_number(data, place * 8, 14 | tl.load(length + block) << 4 | literals << 22)
                byte = tl.arange(0, LONGEST)
                found = tl.load(descriptions + own * LONGEST + byte, mask=byte < about, other=0)
                _put(data, (place + OF_LITERALS + byte) * 8, found.to(tl.int64), byte < about)
                three = tl.where(number < FOUR - 1, sizes << (16 * tl.minimum(number, FOUR - 2)).to(tl.int64), 0)
                _put_number(data, (place + OF_LITERALS + about) * 8, tl.sum(three))
        else:
            _put_bytes(stored, begin, count, data, place + OF_BLOCK + begin - tl.load(start + block), SIZE)
