"""Chunks of tasks given to one decoder as an actor's threads give them: the next one before the one before is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from trio_ray.evaluate.decode import AllRequested, Decoded, PrefixDecoder
from trio_ray.evaluate.join import Task


def answer_overlapping(decoder: PrefixDecoder, chunks: Sequence[Sequence[Task]]) -> list[Decoded | Exception]:
    """What each chunk yields or raises. A chunk is begun when the one before has requested its prefixes, and always
    before that one goes on; or when that one has failed before. The first is answered in the caller's thread, and each
    of the others in one of its own.
    """
    results: list[Decoded | Exception] = []
    with ThreadPoolExecutor(len(chunks)) as pool:
        following: list[Future[Decoded | Exception]] = []

        def begin(number: int) -> bool:
            if number == len(chunks) or len(following) >= number:
                return False
            following.append(pool.submit(answer, number))
            return True

        def answer(number: int) -> Decoded | Exception:
            done: AllRequested | Decoded | None = None
            try:
                for done in decoder.overlapping(chunks[number]):
                    if isinstance(done, AllRequested) and begin(number + 1):
                        _until_it_waits(decoder)
            except Exception as error:
                begin(number + 1)
                return error
            assert isinstance(done, Decoded)
            return done

        results.append(answer(0))
        for number in range(len(chunks) - 1):
            results.append(following[number].result(timeout=60))
    return results


def _until_it_waits(decoder: PrefixDecoder) -> None:
    limit = time.monotonic() + 60
    while not decoder._turns.wanted:
        assert time.monotonic() < limit, threading.enumerate()
        time.sleep(0.001)
