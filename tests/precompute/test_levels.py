"""What a job stores at each level and scope, and what can be had back from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset

from tests.corpora import photo, sample, samples, write_tar
from tests.kv.prefixes import assert_same
from tests.precompute.contract import assert_follows_the_contract
from tests.precompute.runs import job_config, run_here
from tests.seaweed import S3Server
from trio_ray.cache.input_samples import Reread, read_again
from trio_ray.cache.pruned_cache import OtherLevel, PrunedCache
from trio_ray.config import S3Config
from trio_ray.errors import PrefixError
from trio_ray.method.method import Method
from trio_ray.model.continuation import Continuation
from trio_ray.model.decode.engine import generate
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.precompute.summary import JobSummary
from trio_ray.store.opening import open_store
from trio_ray.store.verify import verify

COUNT = 7


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    members = [*samples(COUNT - 1), sample(COUNT, png=photo()), sample(20, png=b"")]
    return write_tar(tmp_path_factory.mktemp("corpus") / "a.tar", members)


@pytest.fixture(scope="module")
def make(
    corpus: Path, model_folders: dict[str, Path], replicas: dict[str, Replica], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., PrunedCache]:
    """A cache of the corpus with these settings, made once."""
    made: dict[str, PrunedCache] = {}

    def cache_of(**settings: Any) -> PrunedCache:
        name = json.dumps(settings, sort_keys=True)
        if name not in made:
            output = str(tmp_path_factory.mktemp("cache"))
            run_here(job_config(model_folders["llama"], corpus, output, **settings), replicas["llama"])
            store = open_store(output, S3Config())
            report = verify(store, 2)
            assert report.findings == []
            assert_follows_the_contract(store)
            assert (report.samples, report.quarantined) == (COUNT, 1)
            made[name] = PrunedCache(output)
        return made[name]

    return cache_of


def prepared_again(cache: PrunedCache, replica: Replica) -> list[PreparedSample]:
    preparer = replica.preparer(10**8, cache.instruction)
    prepared = [preparer.prepare(found) for found in read_again(cache, cache.table.to_pylist(), Reread(S3Config()))]
    assert all(isinstance(one, PreparedSample) for one in prepared)
    return prepared  # type: ignore[return-value]


@pytest.mark.parametrize("settings", [{}, {"cache__scope": "image"}, {"method__selector": "trio-plus"}])
def test_an_indices_cache_prefilled_again_is_the_kv_cache(
    make: Callable[..., PrunedCache], llama: Replica, settings: dict[str, Any]
) -> None:
    indices, kv = make(cache__level="indices", **settings), make(**settings)
    assert all("tar" not in commit.files for commit in indices.commits)
    columns = ["key", "prompt", "turns", "kept", "segments", "top_ids", "top_logprobs", "answer", "prompt_tokens"]
    assert indices.table.select(columns) == kv.table.select(columns)
    kept = indices.table.column("kept").to_pylist()
    again = llama.prefill(
        prepared_again(indices, llama), indices.method, scope=indices.scope, top_k=indices.top_k, known=kept
    ).prefixes
    for ours, stored in zip(again, kv.stream(), strict=True):
        assert_same(ours, stored.prefix)


def test_an_embeds_cache_answers_as_one_prune_before_layer_0(make: Callable[..., PrunedCache], llama: Replica) -> None:
    cache = make(cache__level="embeds")
    stored = [cache.embeds(row) for row in cache.table.to_pylist()]
    first = [[row["kept"][0]] for row in cache.table.to_pylist()]
    method = Method.build(8, layout="uniform")
    pruned = llama.prefill(prepared_again(cache, llama), method, known=first).prefixes
    assert generate(llama.decoder, llama.prefill_embeds(stored), 8) == generate(llama.decoder, pruned, 8)
    assert {item.rows.dtype for item in stored} == {torch.float32}


def test_webdataset_and_plain_safetensors_read_the_embeddings(make: Callable[..., PrunedCache]) -> None:
    from safetensors.torch import load

    cache = make(cache__level="embeds")
    tars = list(dict.fromkeys(str(Path(cache.uri) / row["embeds_object"]) for row in cache.table.to_pylist()))
    members = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(members) == len(cache)
    for member, key in zip(members, cache.keys(), strict=True):
        assert torch.equal(load(member["embeds.safetensors"])["embeds"], cache.embeds(key).rows)


def test_a_level_that_the_cache_does_not_hold_is_refused_by_what_it_holds(make: Callable[..., PrunedCache]) -> None:
    for level, ask in (("kv", "embeds"), ("embeds", "prefix"), ("indices", "prefix"), ("indices", "embeds")):
        cache = make(**({} if level == "kv" else {"cache__level": level}))
        assert cache.level == level
        with pytest.raises(OtherLevel, match=f"the cache holds {level}, not") as caught:
            getattr(cache, ask)("s0002")
        assert caught.value.key == "s0002"
    assert make(cache__level="indices").codec is None


def test_damaged_and_swapped_embeddings_are_named(make: Callable[..., PrunedCache], tmp_path: Path) -> None:
    cache = make(cache__level="embeds")
    row, other = cache.row("s0001"), cache.row("s0002")
    places = [name for name in row if name.startswith("embeds_")]
    with pytest.raises(PrefixError, match="the embeddings of 's0002'"):
        cache.embeds({**row, **{name: other[name] for name in places}})
    with pytest.raises(PrefixError, match="checksum"):
        cache.embeds({**row, "embeds_offset": row["embeds_offset"] + 1})


def test_a_prefix_that_ends_with_its_image_keeps_the_samples_own_question_for_later(
    make: Callable[..., PrunedCache], llama: Replica
) -> None:
    cache = make(cache__scope="image")
    rows = cache.table.to_pylist()
    for row, stored in zip(rows, cache.stream(), strict=True):
        assert row["prompt"].endswith("<image>")
        assert [turn["role"] for turn in row["turns"]] == ["user"]
        assert (row["first_token"], row["first_logprob"], row["top_ids"]) == (None, None, [])
        assert stored.prefix.length == row["prompt_tokens"] == row["image_tokens"] + len(row["prompt_ids"]) - 1
    prefixes = [item.prefix for item in cache.stream()]
    prompts = [row["prompt"] for row in rows]
    answers = llama.ask(prefixes, prompts, [row["turns"][0]["text"] for row in rows], 6)
    known = KnownSamples(make(), llama)
    assert answers == known.answers(cache.table.column("kept").to_pylist())


class KnownSamples:
    """The corpus with its own questions, prefilled from scratch with other samples' kept tokens."""

    def __init__(self, cache: PrunedCache, replica: Replica) -> None:
        self._cache, self._replica = cache, replica

    def answers(self, kept: list[Any]) -> list[str]:
        samples = prepared_again(self._cache, self._replica)
        return self._replica.generate(self._replica.prefill(samples, self._cache.method, known=kept).prefixes, 6)


@pytest.mark.parametrize("scope", ["prompt", "image"])
def test_targets_are_what_a_pass_over_the_stored_prefix_computes(
    make: Callable[..., PrunedCache], llama: Replica, scope: str
) -> None:
    cache = make(cache__targets="top_k", cache__top_k=5, cache__scope=scope)
    found = 0
    for item in cache.stream():
        row = item.row
        assert (row["answer_ids"] is None) is (row["answer"] is None)
        if row["answer"] is None:
            assert row["target_ids"] is row["target_logprobs"] is None
            continue
        found += 1
        tail = llama.writer.ids(f"{row['turns'][0]['text']} ASSISTANT:") if scope == "image" else []
        forced = [*tail, *row["answer_ids"][:-1]]
        logits = Continuation(llama.decoder, [item.prefix], room=len(forced)).score([forced])[0]
        truth = logits.log_softmax(-1).topk(5)
        if scope == "image":
            ids, logprobs = truth.indices[len(tail) - 1 :].tolist(), truth.values[len(tail) - 1 :]
        else:
            ids = [row["top_ids"], *truth.indices.tolist()]
            logprobs = torch.cat([torch.tensor([row["top_logprobs"]]), truth.values])
        assert row["target_ids"] == ids
        assert torch.allclose(torch.tensor(row["target_logprobs"]), logprobs, atol=1e-5)
        assert llama.writer.decode(row["answer_ids"]) == row["answer"]
        assert row["answer_ids"][-1] in llama.stop_tokens
    assert found > 3


def test_answers_without_targets_are_counted(model_folders: dict[str, Path], llama: Replica, tmp_path: Path) -> None:
    """An answer that the context has no room for gets none, and the part's report says how many such samples it has."""
    long = sample(3, json={"question": "what is it ?", "answer": "red " * 2100})
    corpus = write_tar(tmp_path / "a.tar", [*samples(3), long])
    reports = run_here(job_config(model_folders["llama"], corpus, tmp_path / "cache", cache__targets="top_k"), llama)
    assert sum(report.without_targets for report in reports) == 1
    assert "no targets for 1 samples" in str(JobSummary("cache", "run", 1, 0, without_targets=1))
    reports = run_here(job_config(model_folders["llama"], corpus, tmp_path / "without"), llama)
    assert sum(report.without_targets for report in reports) == 0


def test_targets_do_not_depend_on_the_level_or_the_batch(make: Callable[..., PrunedCache]) -> None:
    base = make(cache__targets="top_k", cache__top_k=5, cache__scope="prompt")
    for settings in ({"cache__level": "embeds"}, {"cache__level": "indices", "pipeline__token_budget": 1}):
        other = make(cache__targets="top_k", cache__top_k=5, **settings)
        for name in ("answer_ids", "target_ids"):
            assert other.table.column(name) == base.table.column(name)
        for ours, theirs in zip(other.table.to_pylist(), base.table.to_pylist(), strict=True):
            if ours["target_logprobs"]:
                logprobs = [torch.tensor(row["target_logprobs"]) for row in (ours, theirs)]
                assert torch.allclose(*logprobs, atol=1e-5)


def test_without_targets_the_columns_are_empty(make: Callable[..., PrunedCache]) -> None:
    for name in ("answer_ids", "target_ids", "target_logprobs", "turns", "embeds_object"):
        assert make().table.column(name).null_count == COUNT


def test_embeddings_come_back_from_s3_by_range_reads(
    corpus: Path, tiny_model: Path, llama: Replica, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., PrunedCache],
) -> None:  # fmt: skip
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    uri = s3_server.fresh_uri()
    run_here(job_config(tiny_model, corpus, uri, cache__level="embeds"), llama)
    assert verify(open_store(uri, S3Config()), 2).findings == []
    here, there = make(cache__level="embeds"), PrunedCache(uri)
    assert there.keys() == here.keys()
    for key in here.table.column("key").to_pylist():
        assert torch.equal(there.embeds(key).rows, here.embeds(key).rows)
