"""What a whole run writes is what schemas/ describes."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.corpora import sample, samples, write_parquet, write_tar
from tests.kv.prefixes import codec_of, contained
from tests.precompute.contract import assert_follows_the_contract, assert_valid, described, prefix_header
from tests.precompute.runs import job_config, run_here
from trio_ray.kv.header import CONTAINER_VERSION, DTYPES
from trio_ray.model.replica import Replica
from trio_ray.source.sample import Sample, Turn
from trio_ray.store.local import LocalStore


def test_everything_a_run_writes_follows_the_contract(tmp_path: Path, tiny_model: Path, llama: Replica) -> None:
    write_tar(tmp_path / "corpus" / "a.tar", [*samples(5), sample(5, png=b"")])
    write_tar(tmp_path / "corpus" / "b.tar", [])
    write_tar(tmp_path / "corpus" / "c.tar", [sample(6, json=None)])
    write_parquet(tmp_path / "corpus" / "d.parquet", samples(3))
    run_here(job_config(tiny_model, tmp_path / "corpus" / "*", tmp_path / "cache"), llama)
    assert_follows_the_contract(LocalStore(tmp_path / "cache"))


@pytest.fixture
def header(llama: Replica) -> dict[str, object]:
    """The header of a real prefix."""
    made = sample(1)
    asked = Sample("a key", 0, (made["png"],), (Turn("user", "what is it ?"),))  # type: ignore[arg-type]
    prepared = llama.preparer(10**6).prepare(asked)
    config = job_config(Path(), [], "").method
    (prefix,) = llama.prefill([prepared], config.build(8)).prefixes  # type: ignore[list-item]
    return prefix_header(contained(prefix, codec_of("int4"), "a key", "0" * 64))


def test_a_prefix_has_the_described_header_and_no_other_field(header: dict[str, object]) -> None:
    schema = described("prefix.schema.json")
    assert_valid(header, "prefix")
    assert set(schema["properties"]) == set(schema["required"]) == set(header)
    assert schema["properties"]["version"]["const"] == CONTAINER_VERSION
    assert set(schema["properties"]["dtype"]["enum"]) == set(DTYPES)


def test_a_header_with_anything_missing_added_or_of_another_type_is_refused(header: dict[str, object]) -> None:
    schema = described("prefix.schema.json")
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert not validator.is_valid({**header, "extra": 1})
    for name in header:
        assert not validator.is_valid({key: value for key, value in header.items() if key != name}), name
        assert not validator.is_valid({**header, name: {}}), name
