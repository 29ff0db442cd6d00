"""Options of multiple-choice questions, and prompts that are made from several fields of a record."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from string import Formatter

from trio_ray.config import SourceConfig, template_fields
from trio_ray.source.rejection import Rejected, listed
from trio_ray.source.sample import Reason
from trio_ray.source.turns import text_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OPTIONS = "options"
"""What a template calls the lettered options."""

_LISTS = ("options", "choices")
_NAMES = (tuple(LETTERS), tuple(f"choice_{letter.lower()}" for letter in LETTERS))


def option_fields(config: SourceConfig) -> tuple[str, ...]:
    """All fields that options may be in."""
    return config.option_columns or (*_LISTS, *(name for names in _NAMES for name in names))


def needed_fields(config: SourceConfig) -> tuple[str, ...]:
    """The fields that a prompt made by `source.text_template` needs; none without a template."""
    if config.text_template is None:
        return ()
    names = template_fields(config.text_template)
    return (*(name for name in names if name != OPTIONS), *(option_fields(config) if OPTIONS in names else ()))


def options_of(record: Mapping[str, object], columns: Sequence[str] | None = None) -> tuple[str, ...]:
    """The options' texts, in the order of their letters; none where the record has none.

    Args:
        record: all fields.
        columns: where they are (`source.option_columns`); by default a list in `options` or `choices` (ScienceQA; also
            as text, MMMU), else the fields A, B, C ... (MMBench), else choice_a, choice_b ... (SEED-Bench).
    """
    for name in _LISTS if columns is None else columns[:1]:
        if listed_options := _as_list(record.get(name)):
            return tuple(option if isinstance(option, str) else str(option) for option in listed_options)
    for names in _NAMES if columns is None else (columns,):
        if options := _up_to_gap(record.get(name) for name in names):
            return options
    return ()


def _as_list(value: object) -> list[object] | None:
    """A list, or one that was written as text."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value if isinstance(value, list) else None
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return parsed if isinstance(parsed, list) else None
    return None


def _up_to_gap(values: Iterable[object]) -> tuple[str, ...]:
    """The texts of columns up to the first that is empty, as tables write 'no such option'."""
    return tuple(takewhile(bool, map(_field_text, values)))


def _field_text(value: object) -> str:
    """A field as text; empty where a table has a gap."""
    if isinstance(value, str | bytes):
        text = text_of(value, "a field").strip()
        return "" if text.lower() == "nan" else text
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) and value == value else ""


def fill_in(template: str, record: Mapping[str, object], config: SourceConfig) -> str:
    """The prompt that a template makes of a record. A line whose fields are all empty is left out.

    Raises:
        Rejected: TEXT_MISSING, where none of its fields holds anything.
    """
    texts = {name: _for_template(name, record, config) for name in template_fields(template)}
    if not any(texts.values()):
        raise Rejected(
            Reason.TEXT_MISSING, f"source.text_template asks for {listed(texts)}; the record has: {listed(record)}"
        )
    kept = []
    for line in template.split("\n"):
        names = template_fields(line)
        if not names or any(texts[name] for name in names):
            kept.append(line.format_map(texts))
    return "\n".join(kept)


def _for_template(name: str, record: Mapping[str, object], config: SourceConfig) -> str:
    if name != OPTIONS:
        return _field_text(record.get(name))
    options = options_of(record, config.option_columns)
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def image_name(template: str, record: Mapping[str, object]) -> str | None:
    """The name of the image file that `source.image_name` makes of a record; None where a field has a gap.

    Raises:
        Rejected: IMAGE_MISSING, where the record lacks a field or it cannot be written as the template wants.
    """
    names = template_fields(template)
    if lacking := [name for name in names if name not in record]:
        raise Rejected(
            Reason.IMAGE_MISSING,
            f"source.image_name asks for {listed(lacking)}, and the record has {listed(record)}",
        )
    if any(record[name] is None for name in names):
        return None
    try:
        return _Numbers().vformat(template, (), {name: record[name] for name in names})
    except (ValueError, TypeError) as error:
        raise Rejected(Reason.IMAGE_MISSING, f"source.image_name cannot be filled in: {error}") from None


class _Numbers(Formatter):
    """Writes digits as a number where a template asks for one, whatever type the file gives them."""

    def format_field(self, value: object, format_spec: str) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if format_spec.endswith("d") and isinstance(value, str) and value.isdigit():
            value = int(value)
        return str(super().format_field(value, format_spec))


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that a setting means: the one of that name, or those that match its `*`, ordered by their numbers."""
    names = list(names)
    if pattern in names or "*" not in pattern:
        return [pattern] if pattern in names else []
    wanted = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
    return sorted((name for name in names if wanted.fullmatch(name)), key=natural)


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts `image_2` before `image_10`."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)]
