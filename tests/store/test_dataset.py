"""A cache has one identity for good."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.store.caches import IDENTITY
from trio_ray.errors import IdentityMismatch, ObjectDamaged
from trio_ray.store.dataset import (
    SCHEMA_VERSION,
    NotACacheError,
    create_or_check,
    first_difference,
    hash_identity,
    load_dataset,
)
from trio_ray.store.objects import ObjectStore
from trio_ray.store.record import dump_record, load_record


def test_the_same_settings_join_a_cache_and_keep_its_part_size(store: ObjectStore) -> None:
    made = create_or_check(store, IDENTITY, 100)
    assert made == load_dataset(store)
    assert create_or_check(store, copy.deepcopy(IDENTITY), 999) == made
    assert made.part_samples == 100
    assert made.schema_version == SCHEMA_VERSION


def test_tuples_and_lists_are_the_same_identity(store: ObjectStore) -> None:
    create_or_check(store, {"method": {"prune_points": (1, 10, 15)}}, 1)
    create_or_check(store, {"method": {"prune_points": [1, 10, 15]}}, 1)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("model", "name", "other", r"model\.name = 'tiny', but this run has 'other'"),
        ("method", "prune_points", [1, 3], r"method\.prune_points = \[1, 2\], but this run has \[1, 3\]"),
        ("method", "keep", [3], r"method\.keep = '\(absent\)', but this run has \[3\]"),
        ("model", "revision", "abc", r"model\.revision = None, but this run has 'abc'"),
    ],
)
def test_other_settings_are_refused_with_the_field_and_both_values(
    store: ObjectStore, section: str, field: str, value: object, message: str
) -> None:
    create_or_check(store, IDENTITY, 100)
    other = copy.deepcopy(IDENTITY)
    other[section][field] = value
    with pytest.raises(IdentityMismatch, match=message) as caught:
        create_or_check(store, other, 100)
    assert caught.value.field == f"{section}.{field}"
    assert load_dataset(store).identity == IDENTITY


def test_the_first_difference_is_by_name_and_strict_about_types() -> None:
    assert first_difference({"b": 1, "a": {"z": 1, "y": 2}}, {"b": 2, "a": {"z": 3, "y": 4}}) == ("a.y", 2, 4)
    assert first_difference({"a": 1}, {"a": True}) == ("a", 1, True)
    assert first_difference({"a": {"b": 1}}, {"a": None}) == ("a", {"b": 1}, None)
    assert first_difference(IDENTITY, copy.deepcopy(IDENTITY)) is None


def test_of_racing_runs_with_two_identities_all_that_agree_with_the_winner_join(store: ObjectStore) -> None:
    def run(number: int) -> str | None:
        try:
            return create_or_check(store, {"model": {"name": f"m{number % 2}"}}, 10 + number).created
        except IdentityMismatch:
            return None

    with ThreadPoolExecutor(6) as pool:
        joined = list(pool.map(run, range(6)))
    winner = load_dataset(store)
    agreeing = 0 if winner.identity == {"model": {"name": "m0"}} else 1
    assert [created == winner.created for created in joined] == [number % 2 == agreeing for number in range(6)]


def test_a_folder_without_dataset_is_no_cache(store: ObjectStore) -> None:
    with pytest.raises(NotACacheError, match=r"is no cache, as it has no dataset\.json"):
        load_dataset(store)


def test_another_schema_version_is_refused_and_damage_is_named(store: ObjectStore) -> None:
    create_or_check(store, IDENTITY, 100)
    sound = store.read("dataset.json")
    fields = load_record(sound, "uri")
    store.put("dataset.json", dump_record({**fields, "schema_version": 1}))
    with pytest.raises(IdentityMismatch, match=f"schema_version = 1, but this run has {SCHEMA_VERSION}"):
        load_dataset(store)
    for damaged in (
        sound.replace(b"tiny", b"tony"),
        dump_record({**fields, "identity_hash": "0" * 64}),
        dump_record({**fields, "identity": None}),
        dump_record({"schema_version": SCHEMA_VERSION}),
    ):
        store.put("dataset.json", damaged)
        with pytest.raises(ObjectDamaged, match=r"dataset\.json"):
            load_dataset(store)


def test_the_identity_hash_is_sha256_of_canonical_json() -> None:
    """Other languages must be able to compute it."""
    import hashlib

    text = json.dumps(IDENTITY, sort_keys=True, separators=(",", ":")).encode()
    assert hash_identity(IDENTITY) == hashlib.sha256(text).hexdigest()
