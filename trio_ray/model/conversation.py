"""Questions and answers that go on behind stored prefixes, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence

from trio_ray.kv.prefix import Prefix
from trio_ray.model.continuation import Continuation
from trio_ray.model.decoder import Decoder
from trio_ray.model.prompt import PromptError, PromptWriter
from trio_ray.source.sample import Turn


class Conversation:
    """B conversations that begin with stored prefixes and are written by the model's own chat template.

    Each turn's tokens are those that the whole conversation's text has in that place: should the text of an answer be
    tokenized in another way than the model has written it, or the template leave out its stop token, the rows in
    question are taken back and read anew. So every answer is the one that the whole conversation, prefilled from
    scratch with the same kept tokens, would get.

    Args:
        decoder: the model that made the prefixes.
        writer: its prompts, with the template that the cache was made with.
        stop_tokens: end an answer.
        prefixes: made with one schedule, of scope prompt or image.
        prompts: the text that each of them covers (column `prompt`).

    Raises:
        ValueError: not as many prompts as prefixes.
    """

    def __init__(
        self,
        decoder: Decoder,
        writer: PromptWriter,
        stop_tokens: Sequence[int],
        prefixes: Sequence[Prefix],
        prompts: Sequence[str],
    ) -> None:
        self._writer = writer
        self._stop_tokens = stop_tokens
        if len(prompts) != len(prefixes):
            raise ValueError(f"{len(prompts)} prompts for {len(prefixes)} prefixes")
        self._prefixes, self._prompts = prefixes, prompts
        self._held = [writer.ids(prompt) for prompt in prompts]
        self._fixed = [len(ids) for ids in self._held]
        self._turns: list[list[Turn]] = [[] for _ in prefixes]
        self._state = Continuation(decoder, prefixes, room=0)

    def answer(self, max_new_tokens: int) -> list[str]:
        """Answer the prompts themselves, greedily; before any question.

        Raises:
            NoFirstToken: scope image, where a question comes first.
            PromptError: they are answered already.
        """
        if any(self._turns):
            raise PromptError("the prompt is answered already: go on with ask()")
        return self._answer([prefix.first_token for prefix in self._prefixes], max_new_tokens)

    def ask(self, questions: Sequence[str | Sequence[Turn]], max_new_tokens: int) -> list[str]:
        """Put a further question to each and answer it, greedily.

        Args:
            questions: one for each: a text, or several turns that end with the user's.
            max_new_tokens: longest answer.

        Raises:
            PromptError: the template cannot go on so, or a prompt still waits for its `answer`.
        """
        if any(not turns and len(prefix.top_ids) for turns, prefix in zip(self._turns, self._prefixes, strict=True)):
            raise PromptError("the prompt ends with a question of its own: call answer() before ask()")
        asked = [[*turns, *_turns(question)] for turns, question in zip(self._turns, questions, strict=True)]
        steps = [
            self._writer.new_ids(held, self._writer.continued(prompt, turns), fixed)
            for held, prompt, turns, fixed in zip(self._held, self._prompts, asked, self._fixed, strict=True)
        ]
        self._state.rewind([len(held) - stay for held, (stay, _) in zip(self._held, steps, strict=True)])
        new = [ids for _, ids in steps]
        self._state.reserve(max(map(len, new)) + max_new_tokens)
        first = self._state.extend(new).argmax(-1).tolist()
        self._held = [[*held[:stay], *ids] for held, (stay, ids) in zip(self._held, steps, strict=True)]
        self._turns = asked
        return self._answer(first, max_new_tokens)

    def _answer(self, first: Sequence[int], max_new_tokens: int) -> list[str]:
        self._state.reserve(max_new_tokens)
        before = self._state.lengths[0]
        answers = self._state.answer(first, max_new_tokens, self._stop_tokens)
        # All sequences go on until the longest answer is done; one that has ended reads its last token over and over.
        steps = self._state.lengths[0] - before
        read = [[*answer, *[answer[-1]] * steps][:steps] for answer in answers]
        self._held = [[*held, *tokens] for held, tokens in zip(self._held, read, strict=True)]
        texts = [self._writer.decode(answer) for answer in answers]
        self._turns = [[*turns, Turn("assistant", text)] for turns, text in zip(self._turns, texts, strict=True)]
        return texts


def _turns(question: str | Sequence[Turn]) -> Sequence[Turn]:
    return [Turn("user", question)] if isinstance(question, str) else question
