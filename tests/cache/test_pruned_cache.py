"""A finished cache read back: the prefixes that were computed, by key, in order, or an error that names the fault."""

from __future__ import annotations

import pickle
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset

from tests.corpora import photo, sample, samples, write_parquet, write_tar
from tests.kv.prefixes import assert_same
from tests.precompute.runs import job_config, run_here
from tests.seaweed import S3Server
from trio_ray.cache.fetched import StoredBytes
from trio_ray.cache.pruned_cache import AmbiguousKey, PrunedCache, StoredPrefix, UnknownKey, UnknownShard
from trio_ray.cache.unreadable import PrefixDamaged, PrefixMissing
from trio_ray.errors import AccessRefused, IdentityMismatch, ObjectDamaged, ObjectMissing, PrefixError
from trio_ray.kv.container import checksum
from trio_ray.kv.prefix import Prefix
from trio_ray.method.method import Method
from trio_ray.model.decode.engine import generate
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Prefilled, Replica
from trio_ray.store.dataset import NotACacheError

KEYS = ["a.b.c", "dir/sub/name", "plain", "ünï"]


class Recording(Replica):
    """A replica that keeps what it computes: (key, prefix) in order."""

    def prefill(self, samples: Sequence[PreparedSample], method: Method, **options: Any) -> Prefilled:
        """See `Replica`."""
        prefilled = super().prefill(samples, method, **options)
        # A batch whose selection had not converged is recomputed, and then it is this one that is stored.
        self.batches[tuple(sample.key for sample in samples)] = prefilled.prefixes
        return prefilled

    @classmethod
    def of(cls, replica: Replica) -> Recording:
        """The same model, recorded."""
        recording = cls(**{field.name: getattr(replica, field.name) for field in fields(Replica)})
        recording.batches = {}
        return recording

    @property
    def computed(self) -> list[tuple[str, Prefix]]:
        """Keys and prefixes, in order."""
        return [pair for keys, prefixes in self.batches.items() for pair in zip(keys, prefixes, strict=True)]

    batches: dict[tuple[str, ...], list[Prefix]]


@dataclass(frozen=True)
class Finished:
    """Caches of one job in a folder and on S3, and the prefixes in the process that made them, in the same order."""

    uris: dict[str, str]
    computed: dict[str, list[tuple[str, Prefix]]]


@pytest.fixture(scope="module")
def finished(
    replicas: dict[str, Replica],
    model_folders: dict[str, Path],
    s3_server: S3Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("finished")
    first = [sample(number, __key__=key) for number, key in enumerate(KEYS)]
    inputs = [folder / "corpus" / "first.parquet", folder / "corpus" / "second.tar"]
    write_parquet(inputs[0], [*first, sample(9, png=photo()), sample(7)])  # a tar cannot hold keys with dots
    write_tar(inputs[1], [*samples(3, first=20), sample(7), sample(8, png=b"no image")])
    uris, computed = {"folder": str(folder / "cache"), "s3": s3_server.fresh_uri()}, {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        for kind, uri in uris.items():
            recording = Recording.of(replicas["llama"])
            run_here(job_config(model_folders["llama"], [str(file) for file in inputs], uri), recording)
            computed[kind] = recording.computed
        yield Finished(uris, computed)


@pytest.fixture(params=["folder", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def cache(finished: Finished, kind: str) -> PrunedCache:
    """The finished cache through each store."""
    return PrunedCache(finished.uris[kind])


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """The folder's cache, to be damaged."""
    return shutil.copytree(finished.uris["folder"], tmp_path / "copy")


def test_prefixes_are_bit_for_bit_those_that_were_computed(cache: PrunedCache, finished: Finished, kind: str) -> None:
    stored = list(cache.stream(threads=3))
    computed = finished.computed[kind]
    assert [item.row["key"] for item in stored] == [key for key, _ in computed] == cache.keys()
    assert len(cache) == len(computed) == 10
    for item, (_, prefix) in zip(stored, computed, strict=True):
        assert item.prefix.length == prefix.length
        assert torch.equal(item.prefix.top_logprobs, prefix.top_logprobs)
        for ours, theirs in zip(item.prefix.segments, prefix.segments, strict=True):
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)


def test_prefixes_decode_to_the_tokens_of_the_run_alone_and_in_a_ragged_batch(
    cache: PrunedCache, finished: Finished, kind: str, llama: Replica
) -> None:
    wanted = [generate(llama.decoder, [prefix], 12)[0] for _, prefix in finished.computed[kind]]
    stored = [item.prefix for item in cache.stream()]
    assert len({prefix.length for prefix in stored}) > 5  # ragged indeed
    assert [generate(llama.decoder, [prefix], 12)[0] for prefix in stored] == wanted
    assert generate(llama.decoder, stored, 12) == wanted
    assert len({tuple(answer) for answer in wanted}) > 1


@pytest.mark.parametrize("key", KEYS)
def test_any_key_is_found_by_one_range_read(cache: PrunedCache, finished: Finished, kind: str, key: str) -> None:
    computed = dict(finished.computed[kind])[key]
    assert torch.equal(cache.prefix(key).segments[0].keys, computed.segments[0].keys)


def test_a_key_that_no_sample_has_is_named(cache: PrunedCache) -> None:
    with pytest.raises(UnknownKey, match="'nobody'") as caught:
        cache.prefix("nobody")
    assert (caught.value.key, caught.value.uri) == ("nobody", cache.uri)
    with pytest.raises(UnknownKey):  # it is in quarantine
        cache.prefix("s0008")


def test_a_key_of_two_shards_wants_the_shard(cache: PrunedCache) -> None:
    with pytest.raises(AmbiguousKey) as caught:
        cache.prefix("s0007")
    shards = sorted({commit.shard.name for commit in cache.commits})
    assert all(shard in str(caught.value) for shard in shards)
    rows = [cache.row("s0007", shard) for shard in shards]
    assert [row["shard"] for row in rows] == shards
    assert cache.prefix(rows[1]).length == rows[1]["prompt_tokens"]
    with pytest.raises(UnknownKey):
        cache.row("s0007", "other-shard")


def test_the_quarantine_says_what_is_not_there_and_why(cache: PrunedCache) -> None:
    rows = cache.quarantine.to_pylist()
    assert [(row["key"], row["reason"]) for row in rows] == [("s0008", "image_corrupt")]
    assert rows[0]["shard"].startswith("second-")


def test_rows_in_any_order_come_back_in_that_order(cache: PrunedCache) -> None:
    rows = cache.table.to_pylist()[::-1]
    assert [item.row["key"] for item in cache.stream(rows, threads=4)] == cache.keys()[::-1]


def test_a_flipped_byte_is_noticed_when_it_is_read_and_key_and_object_are_named(copy: Path) -> None:
    cache = PrunedCache(str(copy))
    row = cache.row("plain")
    file = copy / row["kv_object"]
    data = bytearray(file.read_bytes())
    data[row["kv_offset"] + row["kv_length"] // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(PrefixError, match="checksum") as caught:
        cache.prefix("plain")
    assert (caught.value.key, caught.value.uri) == ("plain", str(file))
    cache.prefix("a.b.c")  # its neighbour is sound
    with pytest.raises(PrefixError):
        list(cache.stream())


def test_truncated_and_missing_objects_are_noticed_and_named(copy: Path) -> None:
    cache = PrunedCache(str(copy))
    row = cache.row("plain")
    file = copy / row["kv_object"]
    file.write_bytes(file.read_bytes()[: row["kv_offset"] + 10])
    with pytest.raises(PrefixError, match="truncated") as caught:
        cache.prefix("plain")
    assert (caught.value.key, caught.value.uri) == ("plain", str(file))
    file.unlink()
    with pytest.raises(ObjectMissing, match=re.escape(str(file))):
        cache.prefix("plain")


def test_what_is_lost_or_damaged_is_skipped_when_asked_and_never_in_silence(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = PrunedCache(str(copy))
    lost, hurt = cache.row("s0020"), cache.row("plain")
    (copy / lost["kv_object"]).unlink()
    file = copy / hurt["kv_object"]
    data = bytearray(file.read_bytes())
    data[hurt["kv_offset"] + 100] ^= 1
    file.write_bytes(data)
    gone = [row["key"] for row in cache.table.to_pylist() if row["kv_object"] == lost["kv_object"]]
    found = [item.row for item in cache.stream(on_bad="skip")]
    left = [row for row in cache.table.to_pylist() if row["kv_object"] != lost["kv_object"] and row["key"] != "plain"]
    assert found == left
    errors = {error.key: error for error in cache.skipped}
    assert set(errors) == {*gone, "plain"}
    assert isinstance(errors["s0020"], PrefixMissing)
    assert isinstance(errors["plain"], PrefixDamaged)
    assert errors["plain"].uri == str(file)
    assert [record.args for record in caplog.records] == [(error,) for error in cache.skipped]


def test_errors_come_behind_the_samples_before_them(copy: Path) -> None:
    cache = PrunedCache(str(copy))
    (copy / cache.rows_at([5])[0]["kv_object"]).unlink()
    seen = []
    with pytest.raises(PrefixMissing) as caught:
        seen.extend(cache.stream())
    assert [item.row["key"] for item in seen] == cache.keys()[: len(seen)]
    assert caught.value.key == cache.keys()[len(seen)]


def test_what_lies_side_by_side_is_read_by_one_request_in_any_order(
    cache: PrunedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each of the parts here, which are far below the size of a request."""
    requests: list[str] = []
    plain = type(cache._store).read_into

    def noted(store: Any, name: str, offset: int, buffer: memoryview) -> None:
        requests.append(name)
        plain(store, name, offset, buffer)

    monkeypatch.setattr(type(cache._store), "read_into", noted)
    rows = cache.table.to_pylist()[::-1]
    assert [stored.row for stored in cache.fetch(rows) if isinstance(stored, StoredBytes)] == rows
    assert sorted(requests) == sorted({row["kv_object"] for row in rows})


def test_reading_ahead_stays_within_its_bytes(cache: PrunedCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for nothing, a batch waits until the one before is with the consumer; leaving early hangs nothing."""
    monkeypatch.setattr("trio_ray.cache.pruned_cache.AHEAD_BYTES", 0)
    drawn: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(cache.table.to_pylist()):
            drawn.append(number)
            yield row

    fetched = cache.fetched(rows(), batch=1, ahead=5)
    for number in range(4):
        next(fetched)
        assert len(drawn) <= number + 3  # one fetched, one that waits for memory, one that ends a batch
    fetched.close()


def test_a_stream_that_is_closed_early_draws_no_more_rows(cache: PrunedCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: each may be a read."""
    monkeypatch.setattr("trio_ray.cache.pruned_cache.AHEAD_BYTES", 0)
    (row,) = cache.rows_at([0])
    stream = cache.stream(repeat(row))
    next(stream)
    stream.close()


def test_bytes_are_fetched_as_they_are_stored_and_restored_later(cache: PrunedCache) -> None:
    rows = cache.table.to_pylist()
    fetched = cache.fetch(rows)
    for stored, restored, row in zip(fetched, cache.restore(fetched), rows, strict=True):
        assert isinstance(stored, StoredBytes)
        assert isinstance(restored, StoredPrefix)
        assert checksum(stored.data.numpy().tobytes()) == row["kv_checksum"]
        assert stored.data.untyped_storage().data_ptr() == fetched.data.untyped_storage().data_ptr()  # no copy
        assert_same(restored.prefix, cache.prefix(row))


def test_another_process_reads_the_same_bytes(cache: PrunedCache) -> None:
    """As it does for a GPU: into shared memory that is used again, of a batch that is asked for after a pause, too."""
    rows = cache.table.to_pylist() * 3
    reader, spare = cache._other_process(4)
    for _ in range(2):
        seen = 0
        with closing(cache._fetch_ahead(rows, 4, reader, 2, lambda fetched: fetched, spare)) as batches:
            for fetched in batches:
                for stored in fetched:
                    assert isinstance(stored, StoredBytes)
                    assert stored.row == rows[seen]
                    assert checksum(stored.data.numpy().data) == stored.checksum == stored.row["kv_checksum"]
                    seen += 1
                assert fetched.block is not None
                fetched.block.release()
        assert seen == len(rows)
    assert cache._other_process(4)[0] is reader, "a process and its memory serve all calls"


def test_restored_prefixes_outlive_the_memory_they_were_fetched_into(cache: PrunedCache) -> None:
    """Blocks are read into again and again; nothing of a prefix may lie in them."""
    rows = cache.table.to_pylist()
    stored = [each for batch in cache.restored(rows * 3, batch=2, ahead=1) for each in batch]
    for each, row in zip(stored, rows * 3, strict=True):
        assert isinstance(each, StoredPrefix)
        assert_same(each.prefix, cache.prefix(row))


def test_a_row_of_another_kind_of_error_ends_the_reading(cache: PrunedCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no sample's fault is never skipped: the store's error comes through, and no thread is left behind."""

    def refuse(store: Any, name: str, offset: int, buffer: memoryview) -> None:
        raise AccessRefused(name, "credentials expired")

    before = threading.active_count()
    monkeypatch.setattr(type(cache._store), "read_into", refuse)
    with pytest.raises(AccessRefused):
        list(cache.stream(on_bad="skip"))
    assert threading.active_count() == before


def test_samples_are_restored_together_each_bad_one_with_its_own_error(cache: PrunedCache) -> None:
    stored = [each for each in cache.fetch(cache.table.to_pylist()) if isinstance(each, StoredBytes)]
    stored[3] = replace(stored[3], data=stored[4].data)
    outcomes = cache.restore(stored)
    damaged = outcomes.pop(3)
    assert isinstance(damaged, PrefixDamaged)
    assert damaged.key == stored[3].row["key"]
    assert damaged.uri.endswith(stored[3].row["kv_object"])
    for ours, row in zip(outcomes, [each.row for number, each in enumerate(stored) if number != 3], strict=True):
        assert isinstance(ours, StoredPrefix)
        assert ours.row == row
        assert_same(ours.prefix, cache.prefix(row))
    assert cache.restore([]) == []


def test_a_cache_and_a_prefix_say_what_they_are(cache: PrunedCache) -> None:
    assert repr(cache) == f"PrunedCache({cache.uri!r}: 10 samples in 4 parts of 2 shards, level kv, codec raw)"
    (stored,) = cache.stream(cache.rows_at([0]))
    assert repr(stored).startswith(f"StoredPrefix({cache.keys()[0]!r}: ")
    assert repr(cache.fetch(cache.rows_at([0, 1]))).startswith("Fetched(2 samples, ")


@pytest.mark.parametrize("shard", ["../x", "", "a b", "nobody"])
def test_a_shard_that_cannot_be_is_refused_like_one_that_is_not_there(copy: Path, shard: str) -> None:
    with pytest.raises(UnknownShard, match="nothing is committed"):
        PrunedCache(str(copy), shards=[shard])


def test_a_pickled_cache_reads_the_same_and_takes_no_rows_along(cache: PrunedCache) -> None:
    small = len(pickle.dumps(cache))
    assert len(cache.table) == len(list(cache.stream())) == 10
    data = pickle.dumps(cache)
    assert len(data) < small + 100
    assert pickle.loads(data).keys() == cache.keys() == cache.reopened().keys()


def test_a_row_that_points_to_another_sample_is_refused(cache: PrunedCache) -> None:
    """Should two objects be swapped with their checksums, the key inside the container still tells."""
    places = ("kv_object", "kv_offset", "kv_length", "kv_checksum")
    other = cache.row("dir/sub/name")
    with pytest.raises(PrefixError, match="it holds the prefix of 'dir/sub/name'"):
        cache.prefix({**cache.row("plain"), **{name: other[name] for name in places}})


def test_a_damaged_table_is_refused_by_its_name(copy: Path) -> None:
    cache = PrunedCache(str(copy))
    file = copy / cache.commits[0].files["samples"].name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ObjectDamaged, match=re.escape(str(file))):
        cache.keys()


def test_a_folder_without_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotACacheError, match="precompute"):
        PrunedCache(str(tmp_path))


def test_another_model_is_refused_by_the_field_that_differs(
    cache: PrunedCache, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    cache.check_model(model_folders["llama"], "float32")
    with pytest.raises(IdentityMismatch, match=r"model\.config = .* but what reads it has .* give the model"):
        cache.check_model(model_folders["mistral"], "float32")
    with pytest.raises(IdentityMismatch) as caught:
        cache.check_model(model_folders["llama"], "bfloat16")
    assert caught.value.field == "model.dtype"
    tuned = shutil.copytree(model_folders["llama"], tmp_path / "tuned")
    weights = bytearray((tuned / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tuned / "model.safetensors").write_bytes(weights)
    with pytest.raises(IdentityMismatch) as caught:
        cache.check_model(tuned, "float32")
    assert caught.value.field == "model.weights"


def test_the_schedule_says_how_many_tokens_each_sample_kept(cache: PrunedCache) -> None:
    for row in cache.table.to_pylist():
        assert [len(kept) for kept in row["kept"]] == list(cache.method.schedule.counts(row["image_tokens"]))


def test_webdataset_streams_the_same_prefixes(finished: Finished) -> None:
    """The tar is plain enough for readers that know nothing of this package."""
    cache = PrunedCache(finished.uris["folder"])
    tars = sorted({str(Path(cache.uri) / row["kv_object"]) for row in cache.table.to_pylist()})
    members = list(webdataset.WebDataset(tars, shardshuffle=False))
    stored = {checksum(member["kv.safetensors"]) for member in members}
    assert stored == set(cache.table.column("kv_checksum").to_pylist())
    assert len(members) == len(cache)
