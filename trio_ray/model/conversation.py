"""Questions and answers that go on behind stored prefixes, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence

from trio_ray.kv.prefix import Prefix
from trio_ray.model.decode.choice import GREEDY, Sampling
from trio_ray.model.decode.engine import Engine, Request, answers_in_order
from trio_ray.model.prompt import PromptError, PromptWriter
from trio_ray.source.sample import Turn


class Conversation:
    """B conversations that begin with stored prefixes and are written by the model's own chat template.

    Each turn's tokens are those that the whole conversation's text has in that place: should the text of an answer be
    tokenized in another way than the model has written it, or the template leave out its stop token, the rows in
    question are taken back and read anew. So every answer is the one that the whole conversation, prefilled from
    scratch with the same kept tokens, would get.

    Args:
        engine: of the model that made the prefixes; its memory holds the conversations until `close`.
        writer: the model's prompts, with the template that the cache was made with.
        stop_tokens: end an answer.
        prefixes: made with one schedule, of scope prompt or image. Those that are the same object share their rows.
        prompts: the text that each of them covers (column `prompt`).

    Raises:
        ValueError: not as many prompts as prefixes.
        RequestRefused: the prefixes do not fit into the engine's memory.
    """

    def __init__(
        self,
        engine: Engine,
        writer: PromptWriter,
        stop_tokens: Sequence[int],
        prefixes: Sequence[Prefix],
        prompts: Sequence[str],
    ) -> None:
        if len(prompts) != len(prefixes):
            raise ValueError(f"{len(prompts)} prompts for {len(prefixes)} prefixes")
        self._engine, self._writer, self._stop_tokens = engine, writer, stop_tokens
        self._prompts = prompts
        self._turns: list[list[Turn]] = [[] for _ in prefixes]
        self._tokens = [writer.ids(prompt) for prompt in prompts]
        self._prompt_tokens = [len(ids) for ids in self._tokens]
        self._sequences = engine.hold(prefixes)

    def close(self) -> None:
        """Free the memory of the conversations."""
        for sequence in self._sequences:
            self._engine.drop(sequence)
        self._sequences = []

    def answer(self, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        """Answer the prompts themselves, before any question.

        Raises:
            NoFirstToken: scope image, where a question comes first.
            PromptError: they are answered already.
        """
        if any(self._turns):
            raise PromptError("the prompt is answered already: go on with ask()")
        return self._answer([()] * len(self._sequences), max_new_tokens, sampling)

    def ask(
        self, questions: Sequence[str | Sequence[Turn]], max_new_tokens: int, sampling: Sampling = GREEDY
    ) -> list[str]:
        """Put a further question to each and answer it.

        Args:
            questions: one for each: a text, or several turns that end with the user's.
            max_new_tokens: longest answer.
            sampling: how the tokens are chosen.

        Raises:
            PromptError: the template cannot go on so, or a prompt still waits for its `answer`.
            RequestRefused: a conversation is longer than the model's context, or its memory is full.
        """
        if any(not turns and len(held.top_ids) for turns, held in zip(self._turns, self._sequences, strict=True)):
            raise PromptError("the prompt ends with a question of its own: call answer() before ask()")
        asked = [[*turns, *_turns(question)] for turns, question in zip(self._turns, questions, strict=True)]
        steps = [
            self._writer.new_ids(tokens, self._writer.continued(prompt, turns), prompt)
            for tokens, prompt, turns in zip(self._tokens, self._prompts, asked, strict=True)
        ]
        for number, (stay, _) in enumerate(steps):
            self._sequences[number].appended = stay - self._prompt_tokens[number]
            self._tokens[number] = self._tokens[number][:stay]
        self._turns = asked
        return self._answer([ids for _, ids in steps], max_new_tokens, sampling)

    def _answer(self, new: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling) -> list[str]:
        """Read new tokens and answer. The last token of an answer is not read before the next turn."""
        requests = [
            Request(number, sequence, max_new_tokens, ids, self._stop_tokens, sampling)
            for number, (sequence, ids) in enumerate(zip(self._sequences, new, strict=True))
        ]
        answers = answers_in_order(self._engine, requests)
        self._tokens = [
            [*tokens, *ids, *answer[:-1]] for tokens, ids, answer in zip(self._tokens, new, answers, strict=True)
        ]
        texts = [self._writer.decode(answer) for answer in answers]
        self._turns = [[*turns, Turn("assistant", text)] for turns, text in zip(self._turns, texts, strict=True)]
        return texts


def _turns(question: str | Sequence[Turn]) -> Sequence[Turn]:
    return [Turn("user", question)] if isinstance(question, str) else question
