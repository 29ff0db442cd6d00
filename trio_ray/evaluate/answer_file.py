"""Answers as LLaVA writes them, so that the official evaluation scripts read them.

The fields are those of llava/eval/model_vqa_loader.py: question_id, prompt, text, answer_id, model_id, metadata.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import xxhash

from trio_ray.evaluate.question import Question, Unanswered


def answer_line(question: Question, answer: str, model_id: str, metadata: dict[str, Any]) -> bytes:
    """One line of the answer file. `answer_id` is a hash of question, answer and model: equal runs, equal files."""
    identity = "\0".join([question.shard, question.key, question.text, answer, model_id])
    fields = {
        "question_id": question.question_id,
        "prompt": question.text,
        "text": answer,
        "answer_id": xxhash.xxh3_128_hexdigest(identity.encode()),
        "model_id": model_id,
        "metadata": {"key": question.key, **metadata},
    }
    return _line(fields)


def unanswered_line(unanswered: Unanswered) -> bytes:
    """One line about a question without an answer."""
    return _line(asdict(unanswered))


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
