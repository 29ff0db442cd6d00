"""One shard through one replica: what is committed, when, and what an interruption leaves."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest
from torch import Tensor

from tests.corpora import noise, photo, sample, samples, tar_bytes, write_jsonl, write_parquet, write_tar
from tests.precompute.runs import account, job_config, make_runner, part_reports, run_here, storing_order
from tests.source.corpus import FailingFile
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.calibration.corpus import draw_samples
from trio_ray.errors import StoreError
from trio_ray.method.rows import PackedRows
from trio_ray.model import prepare
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.precompute.plan import plan_job
from trio_ray.precompute.shard_writer import PartReport, ShardWriter
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import BadSample, Sample
from trio_ray.store.commit_table import read_commits
from trio_ray.store.dataset import utc_now
from trio_ray.store.inputs import StoreOpener
from trio_ray.store.local import LocalStore
from trio_ray.store.objects import BytesLike
from trio_ray.store.verify import verify


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4, 2]), (8, [4, 4]), (3, [3])])
def test_parts_end_at_their_boundaries_and_the_highest_alone_is_last(
    tmp_path: Path, tiny_model: Path, llama: Replica, count: int, sizes: list[int]
) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(count))
    reports = run_here(job_config(tiny_model, tar, tmp_path / "cache"), llama)
    assert [report.stored for report in reports] == sizes
    assert [report.part for report in reports] == list(range(len(sizes)))
    commits = read_commits(LocalStore(tmp_path / "cache"), 2)
    assert (
        [commit.last for commit in commits]
        == [report.last for report in reports]
        == [False] * (len(sizes) - 1) + [True]
    )
    assert [commit.stored for commit in commits] == sizes


def test_a_part_is_dated_from_when_work_on_it_began(tmp_path: Path, tiny_model: Path, llama: Replica) -> None:
    """From before its shard was read, or from the end of the part before it: a plan is held against these times."""
    config = job_config(tiny_model, write_tar(tmp_path / "a.tar", samples(8)), tmp_path / "cache")
    plan = plan_job(config, with_gpu=False)
    runner = make_runner(config, llama, plan)
    read: list[str] = []

    def items() -> Iterator[Sample | BadSample]:
        for item in read_shard(plan.tasks[0].shard, config.source, runner.opener):
            read.append(utc_now())
            yield item

    list(runner.run_items(items(), plan.tasks[0].shard))
    first, second = (commit.run for commit in read_commits(LocalStore(tmp_path / "cache"), 2))
    assert first.started <= read[0] <= second.started <= second.finished


def test_a_shard_without_samples_gets_its_record_and_is_never_read_again(
    tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    config = job_config(tiny_model, write_tar(tmp_path / "empty.tar", []), tmp_path / "cache")
    assert [(report.stored, report.last) for report in run_here(config, llama)] == [(0, True)]
    assert plan_job(config, with_gpu=False).tasks == []
    assert verify(LocalStore(tmp_path / "cache"), 1).ok


BAD = {
    "image_corrupt": {"png": noise(1)[:200]},
    "image_empty": {"png": b""},
    "image_missing": {"png": None, "json": {"question": "<image> what ?"}},
    "text_only": {"png": None},
    "image_too_large": {"png": noise(1, (3000, 100))},
    "text_missing": {"json": None},
    "text_empty": {"json": {"question": " "}},
    "text_not_utf8": {"json": None, "txt": b"what \xff\xfe"},
    "text_malformed": {"json": b"{not json"},
    "image_count": {"json": {"question": "<image> and <image> ?"}},
    "prompt_too_long": {"json": {"question": "red " * 3000}},
}


def test_bad_samples_are_named_with_their_reason_and_cost_nothing_else(
    tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    good = samples(10)
    bad = [sample(100 + number, __key__=reason, **fields) for number, (reason, fields) in enumerate(BAD.items())]
    mixed = [member for pair in zip([*good, good[0]], bad, strict=True) for member in pair]  # ends with a repeated key
    run_here(job_config(tiny_model, write_tar(tmp_path / "good.tar", good), tmp_path / "alone"), llama)
    config = job_config(
        tiny_model, write_tar(tmp_path / "mixed.tar", mixed), tmp_path / "cache", source__max_pixels=200_000
    )
    run_here(config, llama)
    found = account(LocalStore(tmp_path / "cache"))
    assert found.reasons == {**{reason: reason for reason in BAD}, "s0000": "duplicate_key"}
    assert sorted(found.stored + found.quarantined) == [(found.stored[0][0], index) for index in range(len(mixed))]
    alone, among = PrunedCache(str(tmp_path / "alone")), PrunedCache(str(tmp_path / "cache"))
    assert among.keys() == alone.keys()
    assert among.table.column("kept") == alone.table.column("kept")
    assert among.table.column("top_ids") == alone.table.column("top_ids")


def test_a_sample_whose_fixed_budget_the_first_layers_use_up_is_not_stored_nor_calibrated_on(
    tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    tar = write_tar(tmp_path / "a.tar", [sample(0, png=noise(1, (8, 8))), sample(1, png=noise(2, (200, 200)))])
    run_here(job_config(tiny_model, tar, tmp_path / "any"), llama)
    small, large = PrunedCache(str(tmp_path / "any")).table.column("image_tokens").to_pylist()
    assert small < large
    config = job_config(
        tiny_model,
        tar,
        tmp_path / "cache",
        method__retention=None,
        method__tokens=small,
        method__prune_points=[7],
        method__weights=[1],
    )
    run_here(config, llama)
    cache = PrunedCache(str(tmp_path / "cache"))
    assert cache.keys() == ["s0000"]
    (bad,) = cache.quarantine.to_pylist()
    assert (bad["key"], bad["reason"]) == ("s0001", "image_too_large")
    assert f"{large} image tokens" in bad["detail"]
    assert "method.prune_points" in bad["detail"]
    assert [drawn.key for drawn in draw_samples(config, llama, 2)] == ["s0000"]


@pytest.mark.parametrize(
    "settings",
    [{"cache__codec": "int4"}, {"cache__scope": "image", "cache__codec": "int4"}, {"cache__level": "embeds"}],
    ids=["prompt", "image", "embeds"],
)
def test_a_prefill_that_overflows_is_not_stored(
    tmp_path: Path, tiny_model: Path, llama: Replica, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    embed = llama.embed

    def overflowing(prepared: list[PreparedSample], *args: Any) -> tuple[Tensor, PackedRows]:
        hidden, rows = embed(prepared, *args)
        for number, ready in enumerate(prepared):
            if ready.key == "s0001":
                hidden[rows.offsets[number] + 1, 0] = float("inf")
        return hidden, rows

    monkeypatch.setattr(llama, "embed", overflowing)
    tar = write_tar(tmp_path / "a.tar", samples(3))
    run_here(job_config(tiny_model, tar, tmp_path / "cache", **settings), llama)
    cache = PrunedCache(str(tmp_path / "cache"))
    assert cache.keys() == ["s0000", "s0002"]
    (bad,) = cache.quarantine.to_pylist()
    assert (bad["key"], bad["index"], bad["reason"]) == ("s0001", 1, "not_finite")
    assert "model.dtype" in bad["detail"]


def test_a_damaged_shard_yields_what_precedes_the_damage_and_a_row_that_says_where(
    tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    whole = tar_bytes(samples(6))
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.tar").write_text("this is no tar file at all\n" * 100)
    write_tar(tmp_path / "sound.tar", samples(2, first=50))
    run_here(job_config(tiny_model, tmp_path / "*.tar", tmp_path / "cache"), llama)
    table = PrunedCache(str(tmp_path / "cache")).quarantine.to_pylist()
    assert sorted(row["reason"] for row in table) == ["shard_truncated", "shard_unreadable"]
    found = account(LocalStore(tmp_path / "cache"))
    assert {"s0050", "s0051", "s0000"} <= set(found.keys)
    assert "s0005" not in found.keys


def test_all_formats_give_the_same_prefixes(tmp_path: Path, tiny_model: Path, llama: Replica) -> None:
    members = [*samples(5), sample(5, png=photo())]
    write_tar(tmp_path / "tar" / "x.tar", members)
    write_parquet(tmp_path / "parquet" / "x.parquet", members)
    write_jsonl(tmp_path / "jsonl" / "x.jsonl", members)
    columns = ["key", "images", "prompt", "answer", "prompt_ids", "kept", "top_ids", "kv_checksum"]
    rows = {}
    for kind in ("tar", "parquet", "jsonl"):
        config = job_config(
            tiny_model, tmp_path / kind / f"x.{kind}", tmp_path / f"cache-{kind}", source__rows_per_shard=3
        )
        run_here(config, llama)
        table = PrunedCache(str(tmp_path / f"cache-{kind}")).table
        rows[kind] = sorted(table.select(columns[:-1]).to_pylist(), key=lambda row: row["key"])
    assert len(rows["tar"]) == 6
    assert rows["tar"] == rows["parquet"] == rows["jsonl"]


def test_resume_decodes_nothing_of_committed_parts(
    tmp_path: Path, tiny_model: Path, llama: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job_config(
        tiny_model, write_tar(tmp_path / "a.tar", samples(10)), tmp_path / "cache", pipeline__token_budget=1
    )
    plan = plan_job(config, with_gpu=False)
    interrupted = make_runner(config, llama, plan).run(plan.tasks[0].shard, frozenset())
    assert next(part_reports(interrupted)).part == 0
    interrupted.close()
    before = {commit.part for commit in read_commits(plan.store, 1)}
    assert before
    decoded: list[bytes] = []
    real: Callable[..., Any] = prepare.decode_image
    monkeypatch.setattr(prepare, "decode_image", lambda data, *rest: decoded.append(data) or real(data, *rest))
    reports = run_here(config, llama)
    assert {report.part for report in reports} == {0, 1, 2} - before
    assert len(decoded) == sum(report.stored for report in reports) == 10 - 4 * len(before)
    assert verify(plan.store, 1).incomplete == []


def test_a_part_that_another_run_commits_first_counts_for_that_run_alone(
    tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    config = job_config(tiny_model, write_tar(tmp_path / "a.tar", samples(10)), tmp_path / "cache")
    plan = plan_job(config, with_gpu=False)
    fast: list[PartReport] = []

    class Slow(ShardWriter):
        """The last part is still open when another run begins and ends."""

        def finish(self, highest_elsewhere: int) -> list[PartReport]:
            while len(read_commits(plan.store, 1)) < 2:
                time.sleep(0.01)
            fast.extend(run_here(config, llama))
            return super().finish(highest_elsewhere)

    sink = partial(Slow, storing_order(config, plan), plan.store)
    slow = run_here(config, llama, open_sink=sink)
    assert [(report.part, report.stored) for report in fast] == [(2, 2)]
    assert [(report.part, report.stored, report.bytes) for report in slow] == [
        (0, 4, slow_bytes(plan.store, 0)),
        (1, 4, slow_bytes(plan.store, 1)),
        (2, 0, 0),
    ]
    found = account(plan.store)
    assert len(found.stored) == len(set(found.stored)) == 10
    assert verify(plan.store, 1).findings == []  # the beaten attempt took its files away


def slow_bytes(store: Any, part: int) -> int:
    """Size of a committed part's tar as its table adds it up to the end of the last prefix, with padding."""
    commit = next(commit for commit in read_commits(store, 1) if commit.part == part)
    rows = pq.read_table(io.BytesIO(store.read(commit.files["samples"].name))).to_pylist()
    end = max(row["kv_offset"] + row["kv_length"] for row in rows)
    return -(-end // 512) * 512


class BreakingOpener:
    """Gives the shard as a file whose store stops answering after some reads."""

    def __init__(self, data: bytes, answers: int) -> None:
        self._data, self._answers = data, answers

    def open(self, uri: str, etag: str | None = None) -> BinaryIO:
        return FailingFile(self._data, self._answers)

    def read(self, uri: str, limit: int | None = None) -> bytes:
        raise StoreError(uri, "the connection was reset")


def test_a_store_that_stops_answering_aborts_the_shard_and_leaves_nothing_visible(
    tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    data = tar_bytes(samples(10))
    (tmp_path / "a.tar").write_bytes(data)
    config = job_config(tiny_model, tmp_path / "a.tar", tmp_path / "cache")
    answers = 40
    with pytest.raises(StoreError, match="connection was reset"):
        run_here(config, llama, opener=BreakingOpener(data, answers))
    store = LocalStore(tmp_path / "cache")
    report = verify(store, 1)
    assert report.findings == []  # neither orphans nor half-written files
    assert list(store.list_unfinished()) == []
    run_here(config, llama, opener=StoreOpener(config.s3))
    assert len(account(store).stored) == 10


class FailingOnce(LocalStore):
    """Refuses the first table of part 0, after long enough for more batches to wait behind it."""

    failed = False

    def put(self, name: str, data: BytesLike) -> None:
        if "/00000-" in name and not self.failed:
            self.failed = True
            time.sleep(1.0)
            raise StoreError(self.uri_of(name), "no space left")
        super().put(name, data)


def test_after_a_failed_write_an_attempt_commits_nothing_more(tmp_path: Path, tiny_model: Path, llama: Replica) -> None:
    """Batches that wait behind the failure may begin amid a part; committing it would lose its first samples."""
    members = [sample(number, png=noise(number, (28, 28)), json={"question": "what is it ?"}) for number in range(12)]
    tar = write_tar(tmp_path / "a.tar", members)
    run_here(job_config(tiny_model, tar, tmp_path / "sound"), llama)
    rows = PrunedCache(str(tmp_path / "sound")).table.column("prompt_tokens")[0].as_py()
    config = job_config(tiny_model, tar, tmp_path / "cache", pipeline__token_budget=3 * rows)
    order = storing_order(config, plan_job(config, with_gpu=False))
    with pytest.raises(StoreError, match="no space left"):
        run_here(config, llama, open_sink=partial(ShardWriter, order, FailingOnce(tmp_path / "cache")))
    store = LocalStore(tmp_path / "cache")
    assert read_commits(store, 1) == []
    assert verify(store, 1).findings == []
    run_here(config, llama)
    assert sorted(index for _, index in account(store).stored) == list(range(12))


class CountingVision:
    """The replica's vision encoder, with a count of the tiles that pass it."""

    def __init__(self, vision: Any) -> None:
        self._vision = vision
        self.tiles = 0

    def encode(self, tiles: Any, **options: Any) -> Any:
        self.tiles += len(tiles)
        return self._vision.encode(tiles, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vision, name)


@pytest.mark.parametrize("token_budget", [16384, 1])
def test_questions_about_one_image_that_follow_each_other_encode_it_once(
    tmp_path: Path, tiny_model: Path, llama: Replica, token_budget: int
) -> None:
    image = noise(3, (100, 60))
    members = [sample(number, png=image) for number in range(6)]
    config = job_config(
        tiny_model, write_tar(tmp_path / "a.tar", members), tmp_path / "cache", pipeline__token_budget=token_budget
    )
    vision: Any = CountingVision(llama.vision)
    stage = make_runner(config, llama, plan_job(config, with_gpu=False)).stage
    run_here(config, llama, stage=replace(stage, replica=replace(llama, vision=vision, _last_image=None)))
    grid = PrunedCache(str(tmp_path / "cache")).table.column("images")[0].as_py()[0]
    assert vision.tiles == 1 + grid["grid_rows"] * grid["grid_columns"]


def test_an_input_replaced_between_planning_and_reading_is_not_taken_for_the_planned_one(
    tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(4))
    config = job_config(tiny_model, tar, tmp_path / "cache")
    plan = plan_job(config, with_gpu=False)
    write_tar(tar, samples(5, first=50))
    with pytest.raises(StoreError, match=r"a\.tar"):
        list(make_runner(config, llama, plan).run(plan.tasks[0].shard, plan.tasks[0].committed))
    assert account(plan.store).keys == []
