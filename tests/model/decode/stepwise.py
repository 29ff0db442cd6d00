"""The reference that the engine is held against: eager steps, one token at a time, in the same batch to the end."""

from __future__ import annotations

from collections.abc import Sequence

from trio_ray.kv.prefix import Prefix
from trio_ray.model.continuation import Continuation
from trio_ray.model.decoder import Decoder


def stepwise(
    decoder: Decoder,
    prefixes: Sequence[Prefix],
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    questions: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Greedy answers behind prefixes, or behind questions of one length, which are read token by token."""
    length = len(questions[0]) if questions else 0
    state = Continuation(decoder, prefixes, room=length + max_new_tokens)
    answers: list[list[int]] = [[] for _ in prefixes]
    following = [prefix.first_token for prefix in prefixes] if not questions else []
    for number in range(length):
        assert questions is not None
        following = state.extend([question[number : number + 1] for question in questions]).argmax(-1).tolist()
    for step in range(max_new_tokens):
        for answer, token in zip(answers, following, strict=True):
            if not answer or answer[-1] not in stop_tokens:
                answer.append(token)
        if step < max_new_tokens - 1:
            following = state.extend([[token] for token in following]).argmax(-1).tolist()
    return answers
