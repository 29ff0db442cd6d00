"""Typed errors say the same wherever they are caught: Ray carries them from process to process."""

from __future__ import annotations

import pickle

import pytest

from trio_ray.errors import ConfigError, IdentityMismatch, ObjectMissing, PrefixError, TrioRayError
from trio_ray.evaluate.question import NoAnswer, Outcome, Unanswered
from trio_ray.source.rejection import Rejected
from trio_ray.source.sample import Reason


@pytest.mark.parametrize(
    "error",
    [
        TrioRayError("a sentence"),
        ConfigError("method.retention", "must be above 0"),
        ObjectMissing("s3://bucket/object", "does not exist"),
        IdentityMismatch("s3://bucket/cache", [("method.retention", 0.1, 0.2)]),
        PrefixError("key", "s3://bucket/object", "checksum differs"),
        Rejected(Reason.IMAGE_EMPTY, "no bytes"),
        NoAnswer(Unanswered(7, "7", Outcome.MISSING, "why"), 3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_the_way_between_processes(error: TrioRayError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert copy.exit_code == error.exit_code
