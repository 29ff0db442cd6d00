"""Bytes to zstd frames on a GPU, of many pieces of bytes at once: one kernel counts bytes, one measures the streams of
coded bits, one lays out the blocks of each piece, one writes frames. Before them one takes wide elements apart.

Imported only where there is a GPU and Triton. A program handles one of the four streams of a block, or, where blocks
are laid out, a piece. Bits of different programs meet in the same word, so all are joined to memory of zeros by atomic
OR. Section numbers are those of RFC 8878 (https://www.rfc-editor.org/rfc/rfc8878).
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
    FRAME_HEADER,
    FRAME_MAGIC,
    LITERALS_HEADER,
    MOST_CONTENT,
    SEQUENCES,
    STREAM_SIZES,
    STREAMS,
    Blocks,
)
from trio_ray.kv.lossless.huffman import MAX_DESCRIPTION
from trio_ray.kv.lossless.tables_in_use import DeviceTables

TILE = 4096
GROUPS = 512
"""Of four bytes each, handled at once by a program."""
SPLIT = 2048
"""Elements that a program takes apart."""
LAID_OUT = 64
"""Blocks of a piece that a program looks at at once."""

FOUR = tl.constexpr(STREAMS)
ROW, LAID = tl.constexpr(4), tl.constexpr(3)
"""Numbers about a block or a piece, and about a block that is laid out."""
LONGEST, MOST = tl.constexpr(MAX_DESCRIPTION), tl.constexpr(MOST_CONTENT)
OF_FRAME, OF_BLOCK = tl.constexpr(FRAME_HEADER), tl.constexpr(BLOCK_HEADER)
OF_LITERALS, OF_SIZES = tl.constexpr(LITERALS_HEADER), tl.constexpr(STREAM_SIZES)
NO_SEQUENCES = tl.constexpr(SEQUENCES)
MAGIC = tl.constexpr(FRAME_MAGIC)


def split_planes(elements: Tensor, pieces: Tensor, longest: int, stored: Tensor) -> None:
    """Take pieces of elements apart into planes of their bytes, as `planes.split_planes` does it with one piece.

    Args:
        elements: flat integers of 2 or 4 bytes, the bits of all pieces one behind the other.
        pieces: (n, 4) int64: where a piece begins in `elements`, its elements, where its planes begin in `stored`, and
            not 0 for floats, whose sign goes to the lowest bit.
        longest: elements of the longest piece.
        stored: flat uint8, takes the planes.
    """
    programs = triton.cdiv(longest, SPLIT)
    with torch.cuda.device_of(stored):
        _split[(len(pieces) * programs,)](
            elements, pieces, stored, programs, WIDTH=elements.element_size(), SIZE=SPLIT
        )  # fmt: skip


def count_bytes(stored: Tensor, blocks: Blocks, tables: int) -> Tensor:
    """(tables, 256) int64, how often each byte occurs in the blocks that are for each of so many tables."""
    counts = torch.zeros((tables, 256), dtype=torch.int64, device=stored.device)
    with torch.cuda.device_of(stored):
        _count[(len(blocks.blocks) * STREAMS,)](stored, blocks.blocks, counts, SIZE=TILE)
    return counts


def make_frames(stored: Tensor, blocks: Blocks, tables: DeviceTables) -> tuple[Tensor, Tensor]:
    """Frames of all pieces, one behind the other, or the bytes themselves where frames would not be smaller.

    Args:
        stored: flat uint8, what frames are made of, or what is stored where they would not be smaller.
        blocks: that cover it.
        tables: that the blocks name.

    Returns:
        (len(stored) and up to 4,) uint8, and (P,) int64, where each piece's end.
    """
    count, device = len(blocks.blocks), stored.device
    bits = torch.empty((count, STREAMS), dtype=torch.int32, device=device)
    layout = torch.empty((count, 3), dtype=torch.int64, device=device)
    sizes = torch.empty(len(blocks.pieces), dtype=torch.int64, device=device)
    data = torch.zeros(len(stored) // 4 + 1, dtype=torch.int32, device=device)
    grid = (count * STREAMS,)
    with torch.cuda.device_of(stored):
        _measure[grid](stored, blocks.blocks, tables.codes, bits, SIZE=TILE)
        _lay_out[(len(sizes),)](
            blocks.blocks, blocks.pieces, bits, tables.described, layout, sizes, SIZE=LAID_OUT, num_warps=1
        )  # fmt: skip
        ends = sizes.cumsum(0)
        _write[grid](
            stored, blocks.blocks, blocks.pieces, layout, sizes, ends, bits, tables.codes, tables.descriptions,
            tables.described, data, SIZE=GROUPS,
        )  # fmt: skip
    return data.view(torch.uint8), ends


@triton.jit(do_not_specialize=["programs"])
def _split(elements, pieces, stored, programs, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """A piece has so many programs."""
    piece = pieces + tl.program_id(0) // programs * ROW
    begin, count, to = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2)
    number = (tl.program_id(0) % programs).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    found = tl.load(elements + begin + number, mask=number < count, other=0)
    whole = found.to(tl.int64) & ((1 << (8 * WIDTH)) - 1)
    if tl.load(piece + 3) != 0:
        whole = (whole << 1) | (whole >> (8 * WIDTH - 1))
    for plane in tl.static_range(WIDTH):
        byte = ((whole >> (8 * plane)) & 255).to(tl.uint8)
        tl.store(stored + to + plane * count + number, byte, mask=number < count)


@triton.jit
def _stream(blocks, block):
    """Where one of a block's streams begins in the stored bytes, and its bytes."""
    length = tl.load(blocks + block * ROW + 1)
    quarter = (length + FOUR - 1) // FOUR
    begin = (tl.program_id(0) % FOUR) * quarter
    count = tl.maximum(tl.minimum(quarter, length - begin), 0)
    return tl.load(blocks + block * ROW) + begin, count


@triton.jit
def _count(stored, blocks, counts, SIZE: tl.constexpr):
    block = tl.program_id(0) // FOUR
    own = tl.load(blocks + block * ROW + 2)
    begin, count = _stream(blocks, block)
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
def _measure(stored, blocks, codes, bits, SIZE: tl.constexpr):
    block = tl.program_id(0) // FOUR
    own = tl.load(blocks + block * ROW + 2)
    begin, count = _stream(blocks, block)
    total = tl.zeros((SIZE,), tl.int32)
    if own >= 0:
        done = 0
        while done < count:
            place = done + tl.arange(0, SIZE)
            byte = tl.load(stored + begin + place, mask=place < count, other=0).to(tl.int32)
            total += tl.load(codes + own * 256 + byte, mask=place < count, other=0) >> 16
            done += SIZE
    tl.store(bits + tl.program_id(0), tl.sum(total))


@triton.jit
def _lay_out(blocks, pieces, bits, described, layout, sizes, SIZE: tl.constexpr):
    """A piece's blocks in its frame, and the bytes that are stored of it: those of the piece where a frame would not be
    smaller. Of each block: where it begins in the frame, the bytes behind its header, and whether they are codes.
    """
    about = pieces + tl.program_id(0) * ROW
    block, stop, plain = tl.load(about), tl.load(about + 1), tl.load(about + 3)
    ahead = plain * 0 + OF_FRAME
    while block < stop:
        number = block + tl.arange(0, SIZE)
        is_own = number < stop
        length = tl.load(blocks + number * ROW + 1, mask=is_own, other=0)
        table = tl.load(blocks + number * ROW + 2, mask=is_own, other=-1)
        about_table = tl.load(described + table, mask=table >= 0, other=0)
        # A last bit marks where a stream begins, which is read from its end.
        coded = OF_LITERALS + about_table + OF_SIZES + NO_SEQUENCES
        for stream in tl.static_range(FOUR):
            coded += (tl.load(bits + number * FOUR + stream, mask=is_own, other=0) + 8) // 8
        is_coded = (about_table > 0) & (coded < length)
        body = tl.where(is_coded, coded, length)
        taken = tl.where(is_own, body + OF_BLOCK, 0)
        tl.store(layout + number * LAID, ahead + tl.cumsum(taken) - taken, mask=is_own)
        tl.store(layout + number * LAID + 1, body, mask=is_own)
        tl.store(layout + number * LAID + 2, is_coded.to(tl.int64), mask=is_own)
        ahead += tl.sum(taken)
        block += SIZE
    is_framed = (ahead < plain) & (plain <= MOST)
    tl.store(sizes + tl.program_id(0), tl.where(is_framed, ahead, plain))


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
    stored, blocks, pieces, layout, sizes, ends, bits, codes, descriptions, described, data, SIZE: tl.constexpr
):  # fmt: skip
    block, stream = tl.program_id(0) // FOUR, tl.program_id(0) % FOUR
    begin, count = _stream(blocks, block)
    start, length = tl.load(blocks + block * ROW), tl.load(blocks + block * ROW + 1)
    table, piece = tl.load(blocks + block * ROW + 2), tl.load(blocks + block * ROW + 3)
    plain, taken = tl.load(pieces + piece * ROW + 3), tl.load(sizes + piece)
    frame = tl.load(ends + piece) - taken
    if taken == plain:
        # No frame is smaller, and the bytes are stored as they are.
        _put_bytes(stored, begin, count, data, frame + begin - tl.load(pieces + piece * ROW + 2), SIZE)
    else:
        place, size = frame + tl.load(layout + block * LAID), tl.load(layout + block * LAID + 1)
        is_coded = tl.load(layout + block * LAID + 2)
        if stream == 0:
            if tl.load(pieces + piece * ROW) == block:
                _put_number(data, frame * 8, MAGIC)
                _put_number(data, (frame + OF_FRAME - 4) * 8, plain)
            is_last = (tl.load(pieces + piece * ROW + 1) == block + 1).to(tl.int64)
            _put_number(data, place * 8, is_last | is_coded * 4 | size << 3)
        if is_coded != 0:
            about = tl.load(described + table)
            number = tl.arange(0, FOUR)
            lengths = ((tl.load(bits + block * FOUR + number) + 8) // 8).to(tl.int64)
            ahead = tl.sum(tl.where(number < stream, lengths, 0))
            place += OF_BLOCK
            streams = place + OF_LITERALS + about + OF_SIZES
            _put_codes(stored, begin, count, codes + table * 256, data, streams + ahead, SIZE)
            if stream == 0:
                # Kind and form of the literals, 2 bits each, then 18 bits each of their size and of what they take.
                literals = size - OF_LITERALS - NO_SEQUENCES
                _put_number(data, place * 8, 14 | length << 4 | literals << 22)
                byte = tl.arange(0, LONGEST)
                found = tl.load(descriptions + table * LONGEST + byte, mask=byte < about, other=0)
                _put(data, (place + OF_LITERALS + byte) * 8, found.to(tl.int64), byte < about)
                three = tl.where(number < FOUR - 1, lengths << (16 * tl.minimum(number, FOUR - 2)).to(tl.int64), 0)
                _put_number(data, (place + OF_LITERALS + about) * 8, tl.sum(three))
        else:
            _put_bytes(stored, begin, count, data, place + OF_BLOCK + begin - start, SIZE)
