"""Question files to questions, by the rules that gave the cache its keys."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trio_ray.config import SourceConfig, parse_section
from trio_ray.errors import ConfigError
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.evaluate.parquet_records import parquet_records
from trio_ray.evaluate.question import Outcome, Question, Unanswered
from trio_ray.evaluate.truth import category_of, truth_of
from trio_ray.source.conversation import exchanges
from trio_ray.source.reader import SHARD_KEY, read_rows
from trio_ray.source.record import KEY_FIELDS, Row, storable
from trio_ray.source.rejection import Rejected, ShardDamaged
from trio_ray.source.sample import Shard
from trio_ray.source.shards import split_file
from trio_ray.source.turns import IMAGE_MARKER
from trio_ray.store.inputs import StoreOpener, expand_inputs

log = logging.getLogger(__name__)


def question_source(identity: dict[str, Any], config: EvaluateConfig) -> SourceConfig:
    """How the question files are read: as the cache's input was, but for what the configuration names.

    Args:
        identity: the cache's.
        config: the evaluation.
    """
    questions = config.questions
    names = (
        "format",
        "records",
        "key_column",
        "text_column",
        "text_template",
        "option_columns",
        "answer_column",
    )
    given = {name: getattr(questions, name) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    return parse_section(SourceConfig, {**identity["source"], **changes})


def read_questions(config: EvaluateConfig, source: SourceConfig) -> Iterator[Question | Unanswered]:
    """All questions of the input files, in order. No image is read.

    Raises:
        ConfigError: no such file, or one without the columns that the settings name.
        StoreError: the store failed.
    """
    opener = StoreOpener(config.s3)
    warned = False
    for file in expand_inputs(config.input, config.s3):
        if not file.readable:
            raise ConfigError("input", f"{file.uri} cannot be read; check the path and its permissions")
        with _faults_named_as_settings():
            shards = split_file(file.uri, file.size, file.etag, source, opener, images=False)
        for shard in shards:
            for question in _read_shard(shard, config, source, opener):
                if not warned and isinstance(question, Question) and _hides_options(question):
                    log.warning(
                        "question %r of %s does not show its options, so no model can choose one; write them into the "
                        "prompt with source.text_template when the cache is made (questions.text_template here)",
                        question.question_id,
                        file.uri,
                    )
                    warned = True
                yield question


def _hides_options(question: Question) -> bool:
    options = question.truth.options if question.truth else ()
    return bool(options) and not any(option in question.text for option in options)


@contextmanager
def _faults_named_as_settings() -> Iterator[None]:
    """What reading a file calls `source`, an evaluation's configuration has as `questions`."""
    try:
        yield
    except ConfigError as error:
        section, _, name = error.field.partition(".")
        if section != "source":
            raise
        raise ConfigError(f"questions.{name}", str(error).removeprefix(f"{error.field}: ")) from None


def _read_shard(
    shard: Shard, config: EvaluateConfig, source: SourceConfig, opener: StoreOpener
) -> Iterator[Question | Unanswered]:
    with opener.open(shard.uri, shard.etag or None) as file:
        if shard.format == "parquet":
            rows = parquet_records(shard, file, source)
        else:
            rows = read_rows(shard, file, source, opener, passed=lambda: True)
        try:
            for row in rows:
                yield from _questions(row, shard, config, source)
        except ShardDamaged as damage:
            yield Unanswered(SHARD_KEY, SHARD_KEY, Outcome.UNREADABLE, f"{shard.uri}: {damage}")


def _questions(row: Row, shard: Shard, config: EvaluateConfig, source: SourceConfig) -> Iterator[Question | Unanswered]:
    """The questions of a row: several where each turn of its conversation is a sample."""
    if isinstance(row.record, Rejected):
        key = storable(row.key)
        yield Unanswered(key, key, Outcome.UNREADABLE, f"{shard.uri}: {row.record}")
        return
    for suffix, exchange in exchanges(row.record, source):
        key = storable(row.key) + suffix
        question_id = key if suffix else _question_id(row, source)
        if isinstance(exchange, Rejected):
            yield Unanswered(question_id, key, Outcome.UNREADABLE, f"{shard.uri}: {exchange}")
        else:
            text = exchange.turns[-1].text.replace(IMAGE_MARKER, "").strip()
            truth = truth_of(row.record, exchange.answer, source, config.questions, config.scorer)
            category = category_of(row.record, config.questions.category_column)
            yield Question(key, shard.name, question_id, text, truth, category)


def _question_id(row: Row, source: SourceConfig) -> int | str:
    """What the answer is filed under: `question_id` as the file spells it, else the key's own field, else the key."""
    assert not isinstance(row.record, Rejected)
    for name in ("question_id", *(KEY_FIELDS if source.key_column is None else (source.key_column,))):
        value = row.record.get(name)
        if isinstance(value, int | str) and not isinstance(value, bool) and value != "":
            return value
    return row.key
