"""Memory for stored bytes stays within its bound, is used again, and nobody waits for ever."""

from __future__ import annotations

import threading

from trio_ray.cache.arena import Arena, Block

MIB = 1 << 20


def in_thread(arena: Arena, size: int) -> tuple[threading.Thread, list[Block | None]]:
    result: list[Block | None] = []
    thread = threading.Thread(target=lambda: result.append(arena.take(size)))
    thread.start()
    return thread, result


def block_of(arena: Arena, size: int) -> Block:
    block = arena.take(size)
    assert block is not None
    assert len(block.tensor) == size
    return block


def test_what_does_not_fit_waits_until_enough_is_released() -> None:
    arena = Arena(3 * MIB)
    first, _ = block_of(arena, MIB), block_of(arena, MIB)
    thread, result = in_thread(arena, 2 * MIB)
    thread.join(0.1)
    assert thread.is_alive()
    first.release()
    thread.join(5)
    assert len(result) == 1


def test_one_larger_than_the_bound_goes_alone() -> None:
    arena = Arena(MIB)
    large = block_of(arena, 5 * MIB)
    thread, result = in_thread(arena, 1)
    thread.join(0.1)
    assert thread.is_alive()
    large.release()
    thread.join(5)
    assert len(result) == 1


def test_released_memory_is_used_again_and_kept_memory_never() -> None:
    arena = Arena(4 * MIB)
    block = block_of(arena, MIB)
    where = block.tensor.data_ptr()
    block.release()
    again = block_of(arena, MIB - 5)
    assert again.tensor.data_ptr() == where
    again.keep()
    assert block_of(arena, MIB).tensor.data_ptr() != where


def test_closing_lets_those_go_who_wait() -> None:
    arena = Arena(0)
    block_of(arena, 1)
    thread, result = in_thread(arena, 1)
    arena.close()
    thread.join(5)
    assert result == [None]
