"""The configuration of an evaluation from a cache (`trio-ray evaluate`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from trio_ray.config import LOCATION, ModelConfig, ReplicasConfig, S3Config, Section
from trio_ray.evaluate.scoring.scorers import ScorerName


class QuestionsConfig(Section):
    """How question files are read. What is not given is as the cache's own source settings have it."""

    format: Literal["auto", "webdataset", "parquet", "jsonl", "json"] | None = Field(
        None, description="By default the cache's own source.format; 'auto' goes by the file's ending."
    )
    key_column: str | None = Field(None, description="Column or field of the key that the cache knows the question by.")
    text_column: str | None = Field(None, description="Column or field of the question's text.")
    text_template: str | None = Field(
        None, description="The question's text, made from fields, such as '{question}' and '{options}'."
    )
    option_columns: tuple[str, ...] | None = Field(
        None, description="Fields of a multiple-choice question's options; see source.option_columns."
    )
    records: str | None = Field(None, description="Field of a .json file that holds the records; see source.records.")
    answer_column: str | None = Field(None, description="Column or field of the true answer(s).")
    category_column: str | None = Field(
        None, description="Column or field that questions are grouped by; by default category, type, answer_type."
    )
    answer_as: Literal["auto", "letter", "index", "text"] = Field(
        "auto",
        description="What the true answer of a multiple-choice question is: the option's letter, its number from 0 "
        "on, or its text. 'auto': a number is an index; text is a letter, else an option, else an index.",
    )


class AnsweringConfig(Section):
    """How answers are decoded."""

    max_new_tokens: int = Field(128, ge=1, description="Longest answer, in tokens.")
    sequences: int = Field(256, ge=1, description="Most questions that a replica answers at a time.")
    memory_gb: float | None = Field(
        None,
        gt=0.0,
        description="Memory for keys and values, in GB; by default a share of what is free. Questions wait for it.",
    )
    temperature: float = Field(
        0.0,
        ge=0.0,
        description="0 takes the most likely token. Above it, tokens are drawn; the first one of an answer from the "
        "entries that the cache stores (cache.top_k).",
    )
    top_p: float = Field(
        1.0, gt=0.0, le=1.0, description="Draw from the most likely tokens that have this chance together."
    )
    seed: int = Field(0, ge=0, description="Of the draws.")
    read_threads: int = Field(8, ge=1, le=256, description="Range reads in flight ahead of the model.")
    chunk_questions: int = Field(
        512,
        ge=1,
        description="Most questions that a replica is given at a time; it is given the next ones before it is done. "
        "Several replicas get fewer at the end, so that they end together.",
    )


class EvaluateConfig(Section):
    """An evaluation job."""

    cache: Annotated[str, LOCATION] = Field("", description="The cache: a local folder or s3://bucket/prefix.")
    input: tuple[str, ...] = Field(
        (),
        description="Question files: paths or s3:// URIs, with globs and {a..b} ranges. None: all that the cache has.",
    )
    output: str = Field("", description="Where answers and metrics go: a local folder or s3://bucket/prefix.")
    scorer: ScorerName = Field("exact", description="How answers are scored.")
    on_missing: Literal["error", "skip"] = Field(
        "error",
        description="What becomes of a question that has no sound prefix: the job ends, or the question is counted "
        "and left out of the scores.",
    )
    model: ModelConfig = ModelConfig()
    questions: QuestionsConfig = QuestionsConfig()
    answering: AnsweringConfig = AnsweringConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    s3: S3Config = S3Config()

    @field_validator("input", mode="before")
    @classmethod
    def _one_uri_is_a_list_too(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value
