"""Stored prefixes to answers, on one model. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from trio_ray.cache.pruned_cache import PrunedCache, StoredPrefix
from trio_ray.cache.unreadable import PrefixMissing
from trio_ray.evaluate.config import AnsweringConfig
from trio_ray.evaluate.join import Task
from trio_ray.evaluate.question import Outcome
from trio_ray.model.replica import Replica


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a task's prefix could not be read."""

    outcome: Outcome
    detail: str


@dataclass
class Decoded:
    """What became of some tasks.

    Attributes:
        answers: task number -> answer.
        faults: task number -> why there is none.
        read_bytes: bytes of the prefixes that were read.
        waited_s: seconds that the model waited for prefixes.
        decoded_s: seconds that it decoded.
    """

    answers: dict[int, str] = field(default_factory=dict)
    faults: dict[int, Fault] = field(default_factory=dict)
    read_bytes: int = 0
    waited_s: float = 0.0
    decoded_s: float = 0.0


@dataclass(frozen=True)
class PrefixDecoder:
    """Answers tasks from a cache: reads run ahead of the model, prefixes of any lengths decode together."""

    cache: PrunedCache
    replica: Replica
    settings: AnsweringConfig

    def run(self, tasks: Sequence[Task]) -> Decoded:
        """Answer all tasks. A prefix that is gone or damaged is a `Fault`; it costs no other task.

        Raises:
            StoreError: the store failed in another way.
        """
        done = Decoded()
        for batch in _batches(self._sound(tasks, done), self.settings.batch_tokens):
            started = time.perf_counter()
            texts = self._answer(batch)
            done.decoded_s += time.perf_counter() - started
            done.answers.update(zip((task.number for task, _ in batch), texts, strict=True))
        return done

    def _answer(self, batch: Sequence[tuple[Task, StoredPrefix]]) -> list[str]:
        """A prefix that ends with its question is answered; one that ends behind the image is asked it first."""
        prefixes = [stored.prefix for _, stored in batch]
        if self.cache.scope == "prompt":
            return self.replica.generate(prefixes, self.settings.max_new_tokens)
        prompts, questions = [task.row["prompt"] for task, _ in batch], [task.question for task, _ in batch]
        return self.replica.ask(prefixes, prompts, questions, self.settings.max_new_tokens)

    def _sound(self, tasks: Sequence[Task], done: Decoded) -> Iterator[tuple[Task, StoredPrefix]]:
        """Tasks with their prefixes, read ahead; the faults of the others are noted."""
        restored = self.cache.restored(
            (task.row for task in tasks), self.replica.device, threads=self.settings.read_threads
        )
        outcomes = chain.from_iterable(restored)
        for task in tasks:
            started = time.perf_counter()
            outcome = next(outcomes)
            done.waited_s += time.perf_counter() - started
            if isinstance(outcome, StoredPrefix):
                done.read_bytes += task.row["kv_length"]
                yield task, outcome
            else:
                kind = Outcome.LOST if isinstance(outcome, PrefixMissing) else Outcome.DAMAGED
                done.faults[task.number] = Fault(kind, str(outcome))


def _batches(pairs: Iterable[tuple[Task, StoredPrefix]], budget: int) -> Iterator[list[tuple[Task, StoredPrefix]]]:
    """Neighbours whose prompts, padded to the longest, have at most `budget` tokens; a longer one goes alone."""
    batch: list[tuple[Task, StoredPrefix]] = []
    longest = 0
    for task, stored in pairs:
        longest = max(longest, task.row["prompt_tokens"])
        if batch and (len(batch) + 1) * longest > budget:
            yield batch
            batch, longest = [], task.row["prompt_tokens"]
        batch.append((task, stored))
    if batch:
        yield batch
