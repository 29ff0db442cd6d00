"""`dataset.json`: what a cache was made with. Created once; every later run and reader is held to it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trio_ray.errors import Difference, IdentityMismatch, ObjectDamaged, ObjectMissing, StoreError
from trio_ray.store.layout import DATASET
from trio_ray.store.objects import ObjectStore
from trio_ray.store.record import canonical_json, dump_record, load_record

SCHEMA_VERSION = 2
ABSENT = "(absent)"


class NotACacheError(StoreError):
    """The folder or prefix holds no `dataset.json`."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Dataset:
    """A cache's identity and the sizes that all its parts share.

    `identity` is nested JSON: all that decides what is stored. `identity_hash` is the SHA-256 (hex) of its
    canonical JSON. `part_samples` consecutive samples of a shard make one part. `created` is ISO 8601 in UTC.
    `model` is the name that the model had, of a hub model with its commit (`owner/model@commit`), of a folder its
    whole path: the identity holds contents alone. `chosen` says of each setting that was left open (auto) what was
    chosen on samples of the input, with what was measured.
    """

    identity: dict[str, Any]
    identity_hash: str
    part_samples: int
    created: str
    package_version: str
    schema_version: int
    model: str = ""
    chosen: dict[str, str] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """The model's name without its commit; empty where the manifest names none."""
        return self._name_and_commit[0]

    @property
    def model_commit(self) -> str | None:
        """The commit of a hub model."""
        return self._name_and_commit[1]

    @property
    def _name_and_commit(self) -> tuple[str, str | None]:
        name, _, commit = self.model.rpartition("@")
        is_commit = bool(name) and re.fullmatch(r"[0-9a-f]{40}", commit) is not None
        return (name, commit) if is_commit else (self.model, None)

    @property
    def basis(self) -> str | None:
        """Digest of the calibrated basis that the identity's codec names, if it names one."""
        codec = (self.identity.get("cache") or {}).get("codec") or {}
        return codec.get("basis") if isinstance(codec, dict) else None


def hash_identity(identity: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of an identity's canonical JSON."""
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def utc_now() -> str:
    """This moment in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def package_version() -> str:
    """The installed package's version; `uninstalled` where it runs from a source folder."""
    try:
        return version("trio-ray")
    except PackageNotFoundError:
        return "uninstalled"


def create_or_check(
    store: ObjectStore,
    identity: Mapping[str, Any],
    part_samples: int,
    model: str = "",
    given: Collection[str] = (),
    chosen: Mapping[str, str] | None = None,
) -> Dataset:
    """Make the cache, or join one that has the same identity, whose `part_samples` and `model` hold.

    Args:
        store: the cache.
        identity: all that decides what is stored.
        part_samples, model: of a new cache; see `Dataset`.
        given: dotted names of the settings that the user gave, which a refusal names first.
        chosen: of a new cache; see `Dataset`.

    Raises:
        IdentityMismatch: the cache was made with another identity or schema version; names what differs.
        ObjectDamaged: its `dataset.json` is not as it was written.
    """
    existing = existing_dataset(store)
    if existing is None:
        dataset = new_dataset(identity, part_samples, model, chosen)
        if store.create(DATASET, dump_record(asdict(dataset))):
            return dataset
        existing = load_dataset(store)  # another run was faster
    check_same(store, existing, identity, given)
    return existing


def new_dataset(
    identity: Mapping[str, Any], part_samples: int, model: str, chosen: Mapping[str, str] | None = None
) -> Dataset:
    """The manifest of a cache that is made now."""
    plain = json.loads(canonical_json(identity))
    return Dataset(
        plain,
        hash_identity(plain),
        part_samples,
        utc_now(),
        package_version(),
        SCHEMA_VERSION,
        model,
        dict(chosen or {}),
    )


def existing_dataset(store: ObjectStore) -> Dataset | None:
    """The manifest of the cache in `store`, None if there is none; raises what else `load_dataset` raises."""
    try:
        return load_dataset(store)
    except NotACacheError:
        return None


def check_same(store: ObjectStore, existing: Dataset, identity: Mapping[str, Any], given: Collection[str] = ()) -> None:
    """Raise `IdentityMismatch` if the cache in `store` was made with another identity; see `create_or_check`."""
    found = list(differences(existing.identity, json.loads(canonical_json(identity))))
    if found:
        users = {name for name, _, _ in found if any(f"{name}.".startswith(f"{setting}.") for setting in given)}
        raise IdentityMismatch(store.uri, sorted(found, key=lambda one: one[0] not in users))


def load_dataset(store: ObjectStore) -> Dataset:
    """Read `dataset.json`.

    Raises:
        NotACacheError: there is none.
        IdentityMismatch: another schema version.
        ObjectDamaged: it is not as it was written.
    """
    uri = store.uri_of(DATASET)
    try:
        record = load_record(store.read(DATASET), uri)
    except ObjectMissing:
        raise NotACacheError(
            store.uri, f"is no cache, as it has no {DATASET}; give the output of a precompute run"
        ) from None
    if record.get("schema_version") != SCHEMA_VERSION:
        raise IdentityMismatch(store.uri, [("schema_version", record.get("schema_version"), SCHEMA_VERSION)])
    if set(record) != {entry.name for entry in fields(Dataset)} or not isinstance(record["identity"], dict):
        raise ObjectDamaged(uri, "has not the fields of a dataset record; restore it from a copy")
    dataset = Dataset(**record)
    if dataset.identity_hash != hash_identity(dataset.identity):
        raise ObjectDamaged(uri, "its identity_hash does not fit its identity; restore it from a copy")
    return dataset


def differences(stored: object, wanted: object, path: str = "") -> Iterator[Difference]:
    """The differing fields of two JSON trees, by name: dotted path, stored value, wanted value.

    Of two things with different names, such as codecs, the names alone: their parameters cannot be compared.
    """
    if isinstance(stored, dict) and isinstance(wanted, dict):
        alike = canonical_json(stored.get("name")) == canonical_json(wanted.get("name"))
        for name in sorted(stored.keys() | wanted.keys()) if alike else ["name"]:
            dotted = f"{path}.{name}" if path else name
            yield from differences(stored.get(name, ABSENT), wanted.get(name, ABSENT), dotted)
    elif canonical_json(stored) != canonical_json(wanted):  # text, because Python holds 1 == True == 1.0
        yield path, stored, wanted


def first_difference(stored: object, wanted: object, path: str = "") -> Difference | None:
    """The first of `differences`."""
    return next(differences(stored, wanted, path), None)
