"""Memory for stored bytes stays within its bound, is used again, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from trio_ray.cache.arena import Arena, BatchMemory, Block, Stock

MIB = 1 << 20


def in_thread(arena: Arena, size: int) -> tuple[threading.Thread, list[Block | None]]:
    result: list[Block | None] = []
    thread = threading.Thread(target=lambda: result.append(arena.take(size)))
    thread.start()
    return thread, result


def counted_memory() -> tuple[list[int], Callable[[int], BatchMemory]]:
    """The sizes of memory that was made, and what makes it."""
    made: list[int] = []

    def make(size: int) -> BatchMemory:
        made.append(size)
        return BatchMemory.of_size(size)

    return made, make


def block_of(arena: Arena, size: int) -> Block:
    block = arena.take(size)
    assert block is not None
    assert len(block.tensor) == size
    return block


def test_what_does_not_fit_waits_until_enough_is_released() -> None:
    arena = Arena(Stock(3 * MIB))
    first, _ = block_of(arena, MIB), block_of(arena, MIB)
    thread, result = in_thread(arena, 2 * MIB)
    thread.join(0.1)
    assert thread.is_alive()
    first.release()
    thread.join(5)
    assert len(result) == 1


def test_one_larger_than_the_bound_goes_alone() -> None:
    arena = Arena(Stock(MIB))
    large = block_of(arena, 5 * MIB)
    thread, result = in_thread(arena, 1)
    thread.join(0.1)
    assert thread.is_alive()
    large.release()
    thread.join(5)
    assert len(result) == 1


def test_released_memory_is_used_again_and_kept_memory_never() -> None:
    arena = Arena(Stock(4 * MIB))
    block = block_of(arena, MIB)
    where = block.tensor.data_ptr()
    block.release()
    again = block_of(arena, MIB - 5)
    assert again.tensor.data_ptr() == where
    again.keep()
    assert block_of(arena, MIB).tensor.data_ptr() != where


def test_a_smaller_block_takes_the_smallest_spare_memory_that_holds_it() -> None:
    """New pinned memory costs a third of a second for half a GB."""
    arena = Arena(Stock(8 * MIB))
    blocks = [block_of(arena, size) for size in (4 * MIB, 2 * MIB)]
    places = [block.tensor.data_ptr() for block in blocks]
    for block in blocks:
        block.release()
    assert block_of(arena, MIB).tensor.data_ptr() == places[1]
    assert block_of(arena, MIB).tensor.data_ptr() == places[0]


def test_arenas_that_follow_each_other_share_memory() -> None:
    """The next reader begins while the one before holds blocks, and makes no memory but its first block."""
    made, make = counted_memory()
    stock = Stock(4 * MIB, make)
    arenas = [Arena(stock) for _ in range(5)]
    blocks = [block_of(arenas[0], MIB) for _ in range(4)]
    for following in arenas[1:]:
        own = [block_of(following, MIB)]
        thread, result = in_thread(following, MIB)
        thread.join(0.1)
        assert thread.is_alive(), "it waits for those of the reader before it"
        blocks.pop().release()
        blocks.pop().release()
        thread.join(5)
        own += [block for block in result if block is not None]
        while blocks:
            blocks.pop().release()
        own += [block_of(following, MIB), block_of(following, MIB)]
        blocks = own
    assert made == [MIB] * 5


def test_a_reader_that_has_no_block_gets_one_at_once() -> None:
    """Two readers whose consumer takes from them in turns would else wait for ever."""
    stock = Stock(MIB)
    first, second = Arena(stock), Arena(stock)
    block_of(first, MIB)
    block_of(second, MIB)


def test_memory_that_cannot_be_made_is_not_counted() -> None:
    failing = True

    def make(size: int) -> BatchMemory:
        if failing:
            raise MemoryError
        return BatchMemory.of_size(size)

    arena = Arena(Stock(MIB, make))
    for _ in range(2):
        with pytest.raises(MemoryError):
            arena.take(MIB)
    failing = False
    block_of(arena, MIB)


def test_closing_lets_those_go_who_wait() -> None:
    arena = Arena(Stock(0))
    block_of(arena, 1)
    thread, result = in_thread(arena, 1)
    arena.close()
    thread.join(5)
    assert result == [None]


def test_memory_that_was_made_ahead_is_used_and_stays_within_the_bound() -> None:
    made, make = counted_memory()
    stock = Stock(5 * MIB, make)
    stock.fill(2 * MIB - 5, 7)
    assert made == [2 * MIB] * 3, "with the first block of a second arena"
    arena, following = Arena(stock), Arena(stock)
    blocks = [block_of(arena, 2 * MIB), block_of(arena, MIB + 1), block_of(following, 2 * MIB)]
    thread, result = in_thread(following, 2 * MIB)
    thread.join(0.1)
    assert thread.is_alive()
    for block in blocks:
        block.release()
    thread.join(5)
    assert len(result) == 1
    block_of(arena, 2 * MIB)
    assert len(made) == 3
    few = Stock(5 * MIB, make)
    few.fill(MIB, 3)
    assert made[3:] == [MIB] * 3


def test_memory_that_was_made_before_there_was_no_more_is_kept() -> None:
    made = []

    def make(size: int) -> BatchMemory:
        if made:
            raise MemoryError
        made.append(BatchMemory.of_size(size))
        return made[0]

    stock = Stock(5 * MIB, make)
    with pytest.raises(MemoryError):
        stock.fill(MIB, 2)
    assert block_of(Arena(stock), MIB).tensor.data_ptr() == made[0].tensor.data_ptr()
