"""From a question's record to its truth and category, in the layouts of LLaVA, lmms-lab and the bundled scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trio_ray.config import SourceConfig
from trio_ray.evaluate.config import QuestionsConfig
from trio_ray.evaluate.scoring.exact_match import plain
from trio_ray.evaluate.scoring.scorer import Truth
from trio_ray.evaluate.scoring.scorers import ScorerName
from trio_ray.source.conversation import answer_fields
from trio_ray.source.options import LETTERS, options_of

CATEGORY_FIELDS = ("category", "type", "answer_type")


def truth_of(
    record: Mapping[str, object],
    answer: str | None,
    source: SourceConfig,
    questions: QuestionsConfig,
    scorer: ScorerName,
) -> Truth | None:
    """What a record says is right; None where it does not say, or not in a way that can be scored.

    Args:
        record: all fields.
        answer: the one answer that the source's rules find in it.
        source: names of the fields.
        questions: what a multiple-choice answer is.
        scorer: multiple choice wants a letter, VQA all annotators.
    """
    if scorer == "multiple_choice":
        options = options_of(record, source.option_columns)
        letter = right_letter(_raw_answer(record, source, answer), options, questions.answer_as)
        return None if letter is None else Truth((letter,), options)
    annotators = _annotators(record, source)
    if len(annotators) > 1:
        return Truth(annotators)
    return None if answer is None else Truth((answer,))


def category_of(record: Mapping[str, object], column: str | None) -> str | None:
    """What a question is counted with: `column`, or the first of CATEGORY_FIELDS that the record has."""
    names = CATEGORY_FIELDS if column is None else (column,)
    return next((str(record[name]) for name in names if record.get(name) not in (None, "")), None)


def right_letter(value: object, options: Sequence[str], answer_as: str) -> str | None:
    """The letter of the right option, None where `value` names none; see `QuestionsConfig.answer_as`."""
    letters = LETTERS[: len(options)] if options else LETTERS
    text = str(value).strip()
    number = int(text) if text.isascii() and text.isdigit() else -1
    by_index = letters[number] if 0 <= number < len(letters) else None
    by_letter = text if len(text) == 1 and text in letters else None
    same = [letter for letter, option in zip(letters, options, strict=False) if plain(option) == plain(text)]
    by_text = same[0] if len(same) == 1 else None
    if answer_as == "auto":
        return by_index if isinstance(value, int) else by_letter or by_text or by_index
    return {"letter": by_letter, "index": by_index, "text": by_text}[answer_as]


def _annotators(record: Mapping[str, object], source: SourceConfig) -> tuple[str, ...]:
    """All annotators' answers, where the record has several: texts, or VQA's `{answer, answer_confidence, ...}`."""
    for name in ("answers",) if source.answer_column is None else (source.answer_column,):
        value = record.get(name)
        if isinstance(value, list):
            texts = [entry.get("answer") if isinstance(entry, dict) else entry for entry in value]
            return tuple(text for text in texts if isinstance(text, str))
    return ()


def _raw_answer(record: Mapping[str, object], source: SourceConfig, answer: str | None) -> object:
    """The answer with the type that the file gives it: an index is a number, but an option may be a digit."""
    value = next((record[name] for name in answer_fields(source) if record.get(name) is not None), answer)
    return answer if isinstance(value, list | dict) else value
