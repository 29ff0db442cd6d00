"""The reference that the engine is held against: one sequence at a time, one eager step for each token."""

from __future__ import annotations

from collections.abc import Sequence

from trio_ray.kv.prefix import Prefix
from trio_ray.model.continuation import Continuation
from trio_ray.model.decoder import Decoder


def stepwise(
    decoder: Decoder,
    prefix: Prefix,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    question: Sequence[int] = (),
) -> list[int]:
    """The greedy answer behind a prefix, the question read token by token."""
    state = Continuation(decoder, [prefix], room=len(question) + max_new_tokens)
    answer: list[int] = []
    for token in question:
        following = int(state.extend([[token]]).argmax())
    answer.append(following if question else prefix.first_token)
    while len(answer) < max_new_tokens and answer[-1] not in stop_tokens:
        answer.append(int(state.extend([[answer[-1]]]).argmax()))
    return answer
