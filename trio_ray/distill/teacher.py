"""What a teacher says of the answers: read from the cache, or computed from its prefixes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from trio_ray.cache.fetched import Row
from trio_ray.distill.examples import Example, Targets
from trio_ray.distill.stream import CachedSample
from trio_ray.kv.prefix import Prefix
from trio_ray.model.continuation import Continuation
from trio_ray.model.decode.engine import generate
from trio_ray.model.prompt import PromptError, up_to_stop
from trio_ray.model.replica import Replica
from trio_ray.source.sample import Turn


class Teacher(ABC):
    """Puts answers behind samples."""

    @abstractmethod
    def examples(self, samples: Sequence[CachedSample]) -> list[Example]:
        """The samples of which there is something to learn, in order."""


class StoredTeacher(Teacher):
    """The distributions that the cache stores (`cache.targets: top_k`).

    A sample without a true answer has the teacher's first token, whose distribution every prompt's row has.
    """

    def examples(self, samples: Sequence[CachedSample]) -> list[Example]:
        found = [(sample, _stored_targets(sample.row)) for sample in samples]
        return [Example(sample.row["key"], sample.embeds, targets) for sample, targets in found if targets is not None]


class PrefixTeacher(Teacher):
    """Distributions computed behind the teacher's stored prefixes, in one pass over a batch's answers.

    A sample without a true answer gets the teacher's own, greedy one.

    Args:
        replica: the model that made the prefixes, loaded with their cache's prompt settings.
        max_new_tokens: longest answer of its own.
    """

    def __init__(self, replica: Replica, max_new_tokens: int) -> None:
        self._replica, self._max_new_tokens = replica, max_new_tokens

    def examples(self, samples: Sequence[CachedSample]) -> list[Example]:
        asked = [(sample, sample.prefix) for sample in samples if sample.prefix is not None]
        true = [self._true_answer(sample.row) for sample, _ in asked]
        answers = self._completed(true, [prefix for _, prefix in asked])
        spoken = self._distributions([prefix for _, prefix in asked], answers)
        return [
            Example(sample.row["key"], sample.embeds, Targets(torch.tensor(answer), own is not None, ids, logprobs))
            for (sample, _), own, answer, (ids, logprobs) in zip(asked, true, answers, spoken, strict=True)
        ]

    def _true_answer(self, row: Row) -> list[int] | None:
        """The tokens of a row's true answer behind its prompt; None where it has none, or it cannot stand there."""
        if row["answer_ids"] is not None or not row["answer"]:
            return row["answer_ids"]
        writer, stop = self._replica.writer, self._replica.stop_tokens
        held = writer.ids(row["prompt"])
        try:
            whole = writer.continued(row["prompt"], [Turn("assistant", row["answer"])], then_answer=False)
            _, ids = writer.new_ids(held, whole, row["prompt"])
        except PromptError:
            return None
        return up_to_stop(ids, stop)

    def _completed(self, true: Sequence[list[int] | None], prefixes: Sequence[Prefix]) -> list[list[int]]:
        """The true answers, and in the others' places the teacher's own."""
        open_ones = [prefix for answer, prefix in zip(true, prefixes, strict=True) if answer is None]
        replica = self._replica
        own = iter(generate(replica.decoder, open_ones, self._max_new_tokens, replica.stop_tokens) if open_ones else ())
        return [next(own) if answer is None else answer for answer in true]

    def _distributions(
        self, prefixes: Sequence[Prefix], answers: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """(a, k) ids and log-probabilities at each answer's tokens; the first one's are the prefix's own."""
        first = [(prefix.top_ids[None].long(), prefix.top_logprobs[None].float()) for prefix in prefixes]
        longer = [number for number, answer in enumerate(answers) if len(answer) > 1]
        if not longer:
            return first
        forced = [answers[number][:-1] for number in longer]
        state = Continuation(self._replica.decoder, [prefixes[n] for n in longer], room=max(map(len, forced)))
        behind = state.top_k(forced, len(prefixes[0].top_ids))
        for number, (ids, logprobs) in zip(longer, behind, strict=True):
            head_ids, head_logprobs = first[number]
            first[number] = (torch.cat([head_ids, ids.long().cpu()]), torch.cat([head_logprobs, logprobs.cpu()]))
        return first


def _stored_targets(row: Row) -> Targets | None:
    if row["answer_ids"] is not None:
        return _targets(row["answer_ids"], True, row["target_ids"], row["target_logprobs"])
    if row["answer"] is None and row["top_ids"]:
        return _targets(row["top_ids"][:1], False, [row["top_ids"]], [row["top_logprobs"]])
    return None


def _targets(answer: list[int], true: bool, ids: list[list[int]], logprobs: list[list[float]]) -> Targets:
    return Targets(torch.tensor(answer), true, torch.tensor(ids), torch.tensor(logprobs, dtype=torch.float32))
