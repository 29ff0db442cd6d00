"""The lossless stage backwards on a GPU: zstd frames of Huffman codes, as `frames` writes them, to the bytes they hold.

Imported only where there is a GPU and Triton. The host knows how long every block's contents are, so each write has its
place before anything is read; what is read from a frame moves reads alone, and those are kept inside the stored bytes.
A frame that is not as `frames` writes it sets its sample's fault, and the rest goes on. Section numbers are those of
RFC 8878 (https://www.rfc-editor.org/rfc/rfc8878).
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
    RAW,
    SEQUENCES,
    STREAM_SIZES,
    STREAMS,
    StoredBlocks,
)
from trio_ray.kv.lossless.huffman import MAX_BITS, MAX_DIRECT

LANES = 16
"""Streams that a program decodes at once. Each is a chain of dependent reads, so many small programs hide more."""
PARSED = 64
"""Blocks whose headers a program reads."""
COPIED = 8192
"""Bytes that a program copies."""
JOINED = 2048
"""Elements that a program puts together from planes of bytes."""
ENTRIES = 1 << MAX_BITS
"""Entries of a table that is asked by the next `MAX_BITS` bits of a stream."""
FIELDS = 6
"""Numbers in `StoredBlocks.frames` about a frame."""
LEAST_BODY = LITERALS_HEADER + 2 + STREAM_SIZES + STREAMS + SEQUENCES
"""A coded block has a description of two bytes and four streams of one byte at least."""

IS_RAW, IS_CODED, IS_BAD = tl.constexpr(RAW), tl.constexpr(CODED), tl.constexpr(3)
OF_FRAME, OF_BLOCK, OF_LITERALS = tl.constexpr(FRAME_HEADER), tl.constexpr(BLOCK_HEADER), tl.constexpr(LITERALS_HEADER)
OF_SIZES, NO_SEQUENCES, FOUR = tl.constexpr(STREAM_SIZES), tl.constexpr(SEQUENCES), tl.constexpr(STREAMS)
MAGIC, LEAST_CODED = tl.constexpr(FRAME_MAGIC), tl.constexpr(LEAST_BODY)
BITS, SIZE_OF_TABLE, DIRECT = tl.constexpr(MAX_BITS), tl.constexpr(ENTRIES), tl.constexpr(MAX_DIRECT)
NUMBERS = tl.constexpr(FIELDS)
BOUNDS = tl.constexpr(STREAMS + 1)
WEIGHTS = tl.constexpr(16)
"""Room for numbers about each weight, of which there are 12."""
DESCRIBED = tl.constexpr(128)
CELLS = tl.constexpr(64)


def decompress(source: Tensor, blocks: StoredBlocks, size: int, samples: int) -> tuple[Tensor, Tensor]:
    """Decompress blocks of many frames.

    Args:
        source: flat uint8 on the GPU, a multiple of 8 bytes from an address that is one; holds the stored bytes.
        blocks: where they are, on the GPU.
        size: bytes that all blocks hold.
        samples: how many samples the blocks belong to.

    Returns:
        (size rounded up to 8,) uint8, what the blocks hold, and (samples,) int32, not 0 for each sample with a block or
        a frame that is damaged, whose bytes then mean nothing.
    """
    device, count = source.device, len(blocks.mode)
    out = torch.empty(-(-size // 8) * 8, dtype=torch.uint8, device=device)
    faults = torch.zeros(samples, dtype=torch.int32, device=device)
    if not count:
        return out, faults
    body, about, slots = (torch.empty(count, dtype=torch.int64, device=device) for _ in range(3))
    streams = torch.empty((count, STREAMS + 1), dtype=torch.int64, device=device)
    symbols = torch.empty((count, 256), dtype=torch.uint8, device=device)
    counts = torch.empty((count, 16), dtype=torch.int32, device=device)
    tables = torch.empty((count, ENTRIES), dtype=torch.int16, device=device)
    words = len(source) // 8
    with torch.cuda.device_of(source):
        if len(blocks.frames):
            _walk[(len(blocks.frames),)](
                source, blocks.frames, blocks.length, blocks.mode, blocks.place, body, faults, num_warps=1
            )
            _read_literals[(triton.cdiv(count, PARSED),)](
                source, blocks.mode, blocks.place, body, blocks.length, blocks.sample, about, streams, faults, count,
                LANES=PARSED, num_warps=2,
            )  # fmt: skip
            _find_leaders[(count,)](source, blocks.mode, blocks.place, about, blocks.leaders, slots, num_warps=1)
            _read_weights[(count,)](
                source, blocks.mode, blocks.place, about, blocks.sample, slots, symbols, counts, faults, num_warps=1
            )
            _fill_tables[(count,)](blocks.mode, slots, symbols, counts, tables, num_warps=4)
            _decode[(triton.cdiv(count * STREAMS, LANES),)](
                source.view(torch.int64), source, blocks.mode, slots, streams, tables, blocks.start, blocks.length,
                blocks.sample, out, out.view(torch.int64), faults, count * STREAMS, words, LANES=LANES, num_warps=1,
            )  # fmt: skip
        longest = triton.cdiv(blocks.longest, COPIED)
        _copy[(count, longest)](source, blocks.mode, blocks.place, blocks.start, blocks.length, out, SIZE=COPIED)
    return out, faults


def join_planes(planes: Tensor, pieces: Tensor, longest: int, element: torch.dtype, out: Tensor) -> None:
    """Put elements together from planes of their bytes.

    Args:
        planes: flat uint8.
        pieces: (n, 3) int64: where the planes of a piece begin, its elements, and where in `out` they begin.
        longest: elements of the longest piece.
        element: the dtype of the elements; a float's sign lies in its lowest bit.
        out: flat, of that dtype.
    """
    whole = {2: torch.int16, 4: torch.int32}[element.itemsize]
    with torch.cuda.device_of(planes):
        _join[(triton.cdiv(longest, JOINED), len(pieces))](  # the first axis alone can be longer than 65,535
            planes, pieces, out.view(whole), WIDTH=element.itemsize, IS_FLOAT=element.is_floating_point, SIZE=JOINED
        )  # fmt: skip


@triton.jit
def _number(source, place, mask, COUNT: tl.constexpr):
    """A number of COUNT bytes at each place, lowest first."""
    number = tl.load(source + place, mask=mask, other=0).to(tl.int64)
    for byte in tl.static_range(1, COUNT):
        number |= tl.load(source + place + byte, mask=mask, other=0).to(tl.int64) << (8 * byte)
    return number


@triton.jit
def _walk(source, frames, lengths, modes, places, bodies, faults):
    """From block to block of a frame, each of which says where the next one is (3.1.1.2)."""
    about = frames + tl.program_id(0) * NUMBERS
    place, end, size = tl.load(about), tl.load(about + 1), tl.load(about + 2)
    sample, block, stop = tl.load(about + 3), tl.load(about + 4), tl.load(about + 5)
    fits = end - place >= OF_FRAME
    is_sound = fits & (_number(source, place, fits, 5) == MAGIC) & (_number(source, place + 5, fits, 4) == size)
    place += OF_FRAME
    while (block < stop) & is_sound:
        fits = place + OF_BLOCK <= end
        header = _number(source, place, fits, 3)
        kind, body, length = (header >> 1) & 3, header >> 3, tl.load(lengths + block)
        place += OF_BLOCK
        is_whole = ((kind == 0) & (body == length)) | ((kind == 2) & (body >= LEAST_CODED))
        is_sound = fits & (place + body <= end) & is_whole & ((header & 1) == (block + 1 == stop).to(tl.int64))
        if is_sound:
            tl.store(modes + block, tl.where(kind == 0, IS_RAW, IS_CODED))
            tl.store(places + block, place)
            tl.store(bodies + block, body)
        place += body
        block += 1
    if (place != end) | (is_sound == 0):
        tl.store(faults + sample, 1)


@triton.jit(do_not_specialize=["count"])
def _read_literals(
    source, modes, places, bodies, lengths, samples, abouts, streams, faults, count, LANES: tl.constexpr
):  # fmt: skip
    """Sizes of a coded block's parts, and that there is nothing but literals in four streams (3.1.1.3.1.1)."""
    block = tl.program_id(0) * LANES + tl.arange(0, LANES)
    is_coded = tl.load(modes + block, mask=block < count, other=0) == IS_CODED
    place = tl.load(places + block, mask=is_coded, other=0)
    body = tl.load(bodies + block, mask=is_coded, other=0)
    length = tl.load(lengths + block, mask=is_coded, other=0)
    header = _number(source, place, is_coded, 5)
    size = (header >> 22) & 0x3FFFF
    is_sound = is_coded & ((header & 15) == 14) & (((header >> 4) & 0x3FFFF) == length)
    is_sound = is_sound & (size + OF_LITERALS + NO_SEQUENCES == body)
    is_sound = is_sound & (_number(source, place + body - 1, is_sound, 1) == 0)
    first = _number(source, place + OF_LITERALS, is_sound, 1)
    about = 1 + tl.where(first < DIRECT, first, (first - (DIRECT - 1) + 1) // 2)
    begin = place + OF_LITERALS + about + OF_SIZES
    end = place + body - NO_SEQUENCES
    is_sound = is_sound & (end - begin >= FOUR)
    sizes = _number(source, begin - OF_SIZES, is_sound, 6)
    second = begin + (sizes & 0xFFFF)
    third = second + ((sizes >> 16) & 0xFFFF)
    fourth = third + ((sizes >> 32) & 0xFFFF)
    is_sound = is_sound & (second > begin) & (third > second) & (fourth > third) & (end > fourth)
    tl.store(abouts + block, about, mask=is_sound)
    tl.store(streams + block * BOUNDS, begin, mask=is_sound)
    tl.store(streams + block * BOUNDS + 1, second, mask=is_sound)
    tl.store(streams + block * BOUNDS + 2, third, mask=is_sound)
    tl.store(streams + block * BOUNDS + 3, fourth, mask=is_sound)
    tl.store(streams + block * BOUNDS + 4, end, mask=is_sound)
    is_bad = is_coded & (is_sound == 0)
    tl.store(modes + block, tl.zeros_like(block) + IS_BAD, mask=is_bad)
    sample = tl.load(samples + block, mask=is_bad, other=0)
    tl.store(faults + sample, tl.zeros_like(block).to(tl.int32) + 1, mask=is_bad)


@triton.jit
def _find_leaders(source, modes, places, abouts, leaders, slots):
    """Blocks with equal descriptions of their codes share the table of one of them: it stays in the cache."""
    block = tl.program_id(0).to(tl.int64)
    if tl.load(modes + block) == IS_CODED:
        byte = tl.arange(0, DESCRIBED)
        about = tl.load(abouts + block)
        own = tl.load(source + tl.load(places + block) + OF_LITERALS + byte, mask=byte < about, other=0)
        slot = block
        for number in tl.static_range(2):
            leader = tl.load(leaders + 2 * block + number)
            is_coded = tl.load(modes + leader) == IS_CODED
            is_alike = is_coded & (tl.load(abouts + leader, mask=is_coded, other=0) == about)
            place = tl.load(places + leader, mask=is_alike, other=0) + OF_LITERALS
            its = tl.load(source + place + byte, mask=byte < tl.where(is_alike, about, 0), other=0)
            is_equal = is_alike & (tl.sum((own != its).to(tl.int32)) == 0)
            slot = tl.where(is_equal, leader, slot)
        tl.store(slots + block, slot)


@triton.jit
def _bits(source, begin, end, bit):
    """Nine bits or more from a bit on, and 0 behind the end."""
    place = begin + (bit >> 3)
    low = tl.load(source + place, mask=place < end, other=0).to(tl.int32)
    high = tl.load(source + place + 1, mask=place + 1 < end, other=0).to(tl.int32)
    return (low | (high << 8)) >> (bit & 7).to(tl.int32)


@triton.jit
def _entry(table, index, wanted):
    """The number in one place of a small table."""
    return tl.sum(tl.where(index == wanted, table, 0))


@triton.jit
def _log2(x, MOST: tl.constexpr):
    """Rounded down, of numbers from 1 to below 2 ** (MOST + 1)."""
    log = tl.zeros_like(x)
    for power in tl.static_range(1, MOST + 1):
        log += (x >= (1 << power)).to(tl.int32)
    return log


@triton.jit
def _read_shares(source, begin, end):
    """The distribution that FSE codes weights by (4.1.1): shares by weight, their sum's logarithm, the bits that it
    took, and whether it is one."""
    weight = tl.arange(0, WEIGHTS)
    shares = tl.zeros((WEIGHTS,), tl.int32)
    log = 5 + (_bits(source, begin, end, begin * 0) & 15)
    is_sound = log <= 6
    threshold = 1 << tl.minimum(log, 6)
    left = threshold + 1
    width = tl.minimum(log, 6) + 1
    value = left * 0
    bit = begin * 0 + 4
    while (left > 1) & (value < WEIGHTS) & is_sound:
        found = _bits(source, begin, end, bit)
        spare = 2 * threshold - 1 - left
        low = found & (threshold - 1)
        full = found & (2 * threshold - 1)
        full = tl.where(full >= threshold, full - spare, full)
        is_short = low < spare
        share = tl.where(is_short, low, full) - 1
        bit += tl.where(is_short, width - 1, width)
        is_sound = (share >= 0) & (share < left)
        left -= share
        shares = tl.where(weight == value, share, shares)
        value += 1
        is_none = share == 0
        while is_none & (value < WEIGHTS):
            zeros = _bits(source, begin, end, bit) & 3
            bit += 2
            value += zeros
            is_none = zeros == 3
        while (left < threshold) & (threshold > 1):
            width -= 1
            threshold >>= 1
    return shares, tl.minimum(log, 6), bit, is_sound & (left == 1)


@triton.jit
def _fse_cells(shares, log):
    """The states (4.1.1): by state its weight, from bit 8 on the bits to read, from bit 16 on what is added to them."""
    weight, cell = tl.arange(0, WEIGHTS), tl.arange(0, CELLS)
    size = 1 << log
    # A symbol's cells are found by steps of 43 (or 23) cells; these numbers undo the steps.
    number = (cell * tl.where(log == 6, 3, 7)) & (size - 1)
    behind = tl.cumsum(shares)
    value = tl.zeros((CELLS,), tl.int32)
    for own in tl.static_range(WEIGHTS):
        value += (number >= _entry(behind, weight, own)).to(tl.int32)
    state = tl.zeros((CELLS,), tl.int32) + 1
    for own in tl.static_range(WEIGHTS):
        mine = (value == own) & (cell < size)
        state = tl.where(mine, _entry(shares, weight, own) + tl.cumsum(mine.to(tl.int32)) - 1, state)
    bits = log - _log2(state, 6)
    return value | (bits << 8) | (((state << bits) - size) << 16)


@triton.jit
def _fse_weights(source, begin, end):
    """Weights by FSE with two states in turns, read from the end (4.2.1.2): weights, their number, and whether they
    are sound."""
    place, cell = tl.arange(0, 256), tl.arange(0, CELLS)
    weights = tl.zeros((256,), tl.int32)
    shares, log, bit, is_sound = _read_shares(source, begin, end)
    cells = _fse_cells(shares, log)
    begin += (bit + 7) >> 3
    last = tl.load(source + end - 1, mask=begin < end, other=0).to(tl.int32)
    is_sound = is_sound & (last > 0)
    left = (end - begin - 1).to(tl.int32) * 8 + _log2(last, 7) - 2 * log
    is_sound = is_sound & (left >= 0)
    own = _bits(source, begin, end, (left + log).to(tl.int64)) & ((1 << log) - 1)
    other = _bits(source, begin, end, left.to(tl.int64)) & ((1 << log) - 1)
    count = log * 0
    goes_on = is_sound
    while goes_on & (count < 254):
        found = _entry(cells, cell, own)
        weights = tl.where(place == count, found & 255, weights)
        count += 1
        bits = (found >> 8) & 255
        left -= bits
        goes_on = left >= 0
        following = _bits(source, begin, end, tl.maximum(left, 0).to(tl.int64)) & ((1 << bits) - 1)
        own = other
        other = (found >> 16) + following
    # Where the bits end, the other state has one weight left.
    weights = tl.where(place == count, _entry(cells, cell, own) & 255, weights)
    return weights, count + 1, is_sound & (goes_on == 0)


@triton.jit
def _read_weights(source, modes, places, abouts, samples, slots, symbols, counts, faults):
    """From the description of its codes (4.2.1) to a block's bytes by weight, and how many have each."""
    block = tl.program_id(0).to(tl.int64)
    mode = tl.load(modes + block)
    is_leader = mode == IS_CODED
    slot = tl.load(slots + block, mask=is_leader, other=0)
    if is_leader & (slot == block):
        place = tl.arange(0, 256)
        begin = tl.load(places + block) + OF_LITERALS
        end = begin + tl.load(abouts + block)
        first = tl.load(source + begin).to(tl.int32)
        begin += 1
        if first < DIRECT:
            weights, count, is_sound = _fse_weights(source, begin, end)
        else:
            count = first - (DIRECT - 1)
            pair = tl.load(source + begin + place // 2, mask=place < count, other=0).to(tl.int32)
            weights = tl.where(place % 2 == 0, pair >> 4, pair & 15)
            weights = tl.where(place < count, weights, 0)
            is_sound = count > 0
        # The last weight makes the sum of all codes' shares a power of two.
        is_sound = is_sound & (tl.max(weights) <= BITS)
        total = tl.sum(tl.where((weights > 0) & (weights <= BITS), 1 << tl.maximum(weights - 1, 0), 0))
        bits = _log2(total, 18) + 1
        rest = (1 << bits) - total
        is_sound = is_sound & (total > 0) & (bits <= BITS) & ((rest & (rest - 1)) == 0)
        weights = tl.where(place == count, _log2(rest, 18) + 1, weights)
        if is_sound:
            ahead = bits * 0
            for weight in tl.static_range(1, BITS + 1):
                mine = weights == weight
                rank = tl.cumsum(mine.to(tl.int32)) - 1
                tl.store(symbols + block * 256 + ahead + rank, place.to(tl.uint8), mask=mine)
                number = tl.sum(mine.to(tl.int32))
                tl.store(counts + block * WEIGHTS + weight, number)
                ahead += number
            tl.store(counts + block * WEIGHTS, bits)
        else:
            tl.store(modes + block, IS_BAD)
            tl.store(faults + tl.load(samples + block), 1)


@triton.jit
def _fill_tables(modes, slots, symbols, counts, tables):
    """By the next bits of a stream the byte that they stand for and, from bit 8 on, how many bits it is (4.2.1.3)."""
    block = tl.program_id(0).to(tl.int64)
    is_leader = tl.load(modes + block) == IS_CODED
    slot = tl.load(slots + block, mask=is_leader, other=0)
    if is_leader & (slot == block):
        entry = tl.arange(0, SIZE_OF_TABLE)
        bits = tl.load(counts + block * WEIGHTS)
        code = entry >> (BITS - bits)
        index, length = tl.zeros_like(entry), tl.zeros_like(entry) + 1
        begin, ahead = bits * 0, bits * 0
        for weight in tl.static_range(1, BITS + 1):
            number = tl.load(counts + block * WEIGHTS + weight)
            mine = (code >= begin) & (code < begin + (number << (weight - 1)))
            index = tl.where(mine, ahead + ((code - begin) >> (weight - 1)), index)
            length = tl.where(mine, bits + 1 - weight, length)
            begin += number << (weight - 1)
            ahead += number
        symbol = tl.load(symbols + block * 256 + tl.minimum(index, 255)).to(tl.int32)
        tl.store(tables + block * SIZE_OF_TABLE + entry, (symbol | (length << 8)).to(tl.int16))


@triton.jit
def _window(words, bit, last_word):
    """The 64 bits ahead of a bit of the stored bytes, the nearest one highest."""
    word = (bit - 1) >> 6
    used = ((bit - 1) & 63).to(tl.uint64)
    high = tl.load(words + tl.minimum(tl.maximum(word, 0), last_word)).to(tl.uint64, bitcast=True)
    low = tl.load(words + tl.minimum(tl.maximum(word - 1, 0), last_word)).to(tl.uint64, bitcast=True)
    return (high << (63 - used)) | ((low >> 1) >> used)


@triton.jit
def _decode_one(window, table, active):
    """The byte that the first bits of a window stand for, the window behind them, and how many they are."""
    entry = tl.load(table + (window >> 53).to(tl.int32)).to(tl.int32)
    bits = tl.where(active, entry >> 8, 0)
    return entry & 255, window << bits.to(tl.uint64), bits


@triton.jit(do_not_specialize=["count", "total_words"])
def _decode(
    words, source, modes, slots, streams, tables, starts, lengths, samples, out, out_words, faults, count, total_words,
    LANES: tl.constexpr,
):  # fmt: skip
    """Streams of codes, each from its end to its begin (4.2.2), to bytes in order."""
    stream = tl.program_id(0) * LANES + tl.arange(0, LANES)
    block, quarter = (stream // FOUR).to(tl.int64), stream % FOUR
    is_real = stream < count
    mode = tl.load(modes + block, mask=is_real, other=0)
    is_coded = is_real & (mode == IS_CODED)
    slot = tl.load(slots + block, mask=is_coded, other=0)
    # A leader that turned out to be damaged has no table.
    active = is_coded & (tl.load(modes + slot, mask=is_coded, other=0) == IS_CODED)
    begin = tl.load(streams + block * BOUNDS + quarter, mask=active, other=0)
    end = tl.load(streams + block * BOUNDS + quarter + 1, mask=active, other=1)
    length = tl.load(lengths + block, mask=active, other=0)
    each = (length + FOUR - 1) // FOUR
    number = tl.maximum(tl.minimum(each, length - quarter * each), 0).to(tl.int32)
    to = tl.load(starts + block, mask=active, other=0) + quarter * each
    final = tl.load(source + end - 1, mask=active, other=1).to(tl.int32)
    bit = (end - 1) * 8 + _log2(tl.maximum(final, 1), 7)
    table = tables + slot * SIZE_OF_TABLE
    last_word = total_words - 1

    # Bytes up to a whole word of the output, then words, then the bytes that are left.
    head = tl.minimum((-to & 7).to(tl.int32), number)
    done, most = 0, tl.max(head)
    while done < most:
        writes = active & (done < head)
        symbol, _, bits = _decode_one(_window(words, bit, last_word), table, writes)
        tl.store(out + to + done, symbol.to(tl.uint8), mask=writes)
        bit -= bits
        done += 1
    to += head
    number -= head
    place = to >> 3
    done, most = 0, tl.max(number >> 3)
    while done < most:
        writes = active & (done < (number >> 3))
        both = tl.zeros((LANES,), tl.int64)
        for half in tl.static_range(2):
            window = _window(words, bit, last_word)
            for part in tl.static_range(4):
                symbol, window, bits = _decode_one(window, table, writes)
                both |= symbol.to(tl.int64) << (32 * half + 8 * part)
                bit -= bits
        tl.store(out_words + place + done, both, mask=writes)
        done += 1
    to += number >> 3 << 3
    number &= 7
    done, most = 0, tl.max(number)
    while done < most:
        writes = active & (done < number)
        symbol, _, bits = _decode_one(_window(words, bit, last_word), table, writes)
        tl.store(out + to + done, symbol.to(tl.uint8), mask=writes)
        bit -= bits
        done += 1

    is_bad = is_coded & ((active == 0) | (final == 0) | (bit != begin * 8))
    sample = tl.load(samples + block, mask=is_bad, other=0)
    tl.store(faults + sample, tl.zeros((LANES,), tl.int32) + 1, mask=is_bad)


@triton.jit
def _copy(source, modes, places, starts, lengths, out, SIZE: tl.constexpr):
    """Blocks that are stored as they are."""
    block = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + block)
    begin = tl.program_id(1).to(tl.int64) * SIZE
    if (tl.load(modes + block) == IS_RAW) & (begin < length):
        byte = begin + tl.arange(0, SIZE)
        found = tl.load(source + tl.load(places + block) + byte, mask=byte < length, other=0)
        tl.store(out + tl.load(starts + block) + byte, found, mask=byte < length)


@triton.jit
def _join(planes, pieces, out, WIDTH: tl.constexpr, IS_FLOAT: tl.constexpr, SIZE: tl.constexpr):
    piece = pieces + tl.program_id(1).to(tl.int64) * 3
    begin, count, to = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2)
    element = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    whole = tl.zeros((SIZE,), tl.uint32)
    for plane in tl.static_range(WIDTH):
        found = tl.load(planes + begin + plane * count + element, mask=element < count, other=0)
        whole |= found.to(tl.uint32) << (8 * plane)
    if IS_FLOAT:
        whole = (whole >> 1) | ((whole & 1) << (8 * WIDTH - 1))
    tl.store(out + to + element, whole.to(out.dtype.element_ty), mask=element < count)
