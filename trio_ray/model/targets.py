"""What a teacher says of a true answer, token by token, behind its pruned prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.prefix import Prefix
from trio_ray.model.continuation import Continuation
from trio_ray.model.decoder import Decoder
from trio_ray.model.prepare import AnswerTokens


@dataclass(frozen=True)
class Targets:
    """Of one answer of n tokens: (n, k) int32 `ids` and fp32 `logprobs` of what the model holds most likely in the
    place of each of them, best first.
    """

    ids: Tensor
    logprobs: Tensor


@dataclass(frozen=True)
class TargetsBatch:
    """`Targets` of B samples, one behind the other; `counts` are their answers' tokens, 0 where there is no answer."""

    counts: tuple[int, ...]
    ids: Tensor
    logprobs: Tensor

    def tensors(self) -> Iterator[Tensor]:
        """All of its tensors."""
        yield from (self.ids, self.logprobs)

    def copied(self, copy: Callable[[Tensor], Tensor]) -> TargetsBatch:
        """The same with each tensor through `copy`."""
        return replace(self, ids=copy(self.ids), logprobs=copy(self.logprobs))

    def split(self) -> list[Targets | None]:
        """The samples' targets; their tensors are views."""
        parts = (tensor.split(list(self.counts)) for tensor in self.tensors())
        return [Targets(*tensors) if len(tensors[0]) else None for tensors in zip(*parts, strict=True)]


@torch.no_grad()
def answer_targets(
    decoder: Decoder, batch: PrefixBatch, answers: Sequence[AnswerTokens | None], top_k: int
) -> TargetsBatch:
    """The `top_k` most likely tokens at each token of each answer, teacher-forced behind its prefix, in one pass.

    Nothing waits for the device.

    Args:
        decoder: the model that made the prefixes.
        batch: the prefixes. Where they end with a prompt, their `top_ids` are the targets of the first token, so there
            must be `top_k` of them.
        answers: of each sample, None where it has none.
        top_k: entries of each distribution.
    """
    prefixes = batch.split()
    forced = [(*answer.before, *answer.ids[:-1]) if answer else () for answer in answers]
    behind = _top_k_behind(decoder, prefixes, forced, top_k)
    parts = []
    for number, (prefix, answer) in enumerate(zip(prefixes, answers, strict=True)):
        if answer is None:
            continue
        if not answer.before:
            parts.append((prefix.top_ids[None], prefix.top_logprobs[None]))
        if number in behind:
            start, (ids, logprobs) = max(0, len(answer.before) - 1), behind[number]
            parts.append((ids[start:], logprobs[start:]))
    if not parts:
        parts.append((batch.top_ids.new_empty(0, top_k), batch.top_logprobs.new_empty(0, top_k)))
    ids, logprobs = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return TargetsBatch(tuple(len(answer.ids) if answer else 0 for answer in answers), ids, logprobs)


def _top_k_behind(
    decoder: Decoder, prefixes: Sequence[Prefix], forced: Sequence[Sequence[int]], top_k: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """By sample number, the best of every distribution behind its `forced` tokens, where it has any."""
    numbers = [number for number, tokens in enumerate(forced) if tokens]
    if not numbers:
        return {}
    tokens = [forced[number] for number in numbers]
    state = Continuation(decoder, [prefixes[number] for number in numbers], room=max(map(len, tokens)))
    return dict(zip(numbers, state.top_k(tokens, top_k), strict=True))
