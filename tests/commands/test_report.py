"""`trio-ray report` writes one page about a cache, which a browser opens, searches and prints."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.precompute.runs import job_config, run_here
from tests.report.browser import chromium, opened, violations
from tests.store.caches import row
from trio_ray.cache.identity import build_identity
from trio_ray.cache.input_samples import Reread
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cli import main
from trio_ray.config import JobConfig, ModelConfig, S3Config
from trio_ray.model.loading import model_folder
from trio_ray.model.replica import Replica
from trio_ray.report.divergence import measure_divergence
from trio_ray.report.pairs import pair_samples
from trio_ray.store.commits import RunRecord, ShardInput
from trio_ray.store.dataset import create_or_check, utc_now
from trio_ray.store.failures import FailureLog, FailureRecord
from trio_ray.store.opening import open_store
from trio_ray.store.parts import PartWriter

HOSTILE = '</script><img src=x onerror="window.hacked=1">{{ 7*7 }}\'"&'


def page_of(cache: Path, out: Path, *options: str) -> str:
    assert main(["report", str(cache), "--out", str(out), *options]) == 0
    return out.read_text(encoding="utf-8")


def test_the_page_holds_what_the_cache_is_and_what_was_kept(cache: Path, tmp_path: Path) -> None:
    page = page_of(cache, tmp_path / "report.html", "--verify")
    assert "image_empty" in page
    assert "s0006" in page
    assert "trio-ray precompute --config job.yaml" in page
    assert "every checksum is right: 12 samples and 1 in quarantine in 4 parts" in page
    assert page.count('<li class="card">') == 3 * 8
    assert page.count("data:image/webp") == 3 * 8, "each has its picture"
    keys = json.loads(re.search(r'id="keys">(.*?)</script>', page)[1])  # type: ignore[index]
    assert keys["key"] == PrunedCache(str(cache)).keys()
    assert keys["total"] == 12
    for kind in ("style", "script"):
        text = re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)[1]  # type: ignore[index]
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in page, (
            "its policy allows its own alone"
        )


def test_damage_and_lost_input_are_said_in_the_page(cache: Path, made: Path, tmp_path: Path) -> None:
    (name,) = {row["kv_object"] for row in PrunedCache(str(cache)).table.to_pylist() if row["key"] == "s0050"}
    tar = cache / name
    run = RunRecord("run", "host", utc_now(), utc_now(), "0.1.0")
    lost, identity = ShardInput("lost", "/gone.tar", -1, "", None), PrunedCache(str(cache)).dataset.identity_hash
    store = open_store(str(cache), S3Config())
    FailureLog(store, "run").add(FailureRecord(identity, lost, 3, "it died", run))
    tar.write_bytes(tar.read_bytes()[:-600] + bytes(600 - 512) + b"x" * 512)
    (made / "corpus").rename(made / "elsewhere")
    try:
        page = page_of(cache, tmp_path / "report.html", "--verify")
    finally:
        (made / "elsewhere").rename(made / "corpus")
    assert "<b>Damaged.</b>" in page
    assert "<b>1 was given up</b>" in page
    assert "/gone.tar</span>: it died" in page
    assert tar.name in page
    assert page.count('class="nopicture"') == 3 * 8
    assert "data:image/webp" not in page
    assert page_of(cache, tmp_path / "report.html", "--pictures", "0").count('<li class="card">') == 0


def test_what_cannot_be_written_or_read_is_said(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(cache), "--out", str(tmp_path / "no" / "x.html")]) == 2
    assert "--out: there is no folder" in capsys.readouterr().err
    assert main(["report", str(cache), "--out", str(tmp_path / "x.html"), "--estimate", "nothing.json"]) == 2
    assert "--estimate: nothing.json cannot be read" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2


def hostile_page(folder: Path, stored: int) -> Path:
    """The page of a cache whose keys, prompts and details are somebody's attack; it has `stored` samples."""
    config = JobConfig()
    identity = build_identity(
        config, model_folder(config.model), torch.float32, config.method.build(16), {"name": "raw"}
    )
    store = open_store(str(folder / "cache"), S3Config())
    dataset = create_or_check(store, identity, 10, HOSTILE)
    writer = PartWriter(store, dataset, ShardInput("s", HOSTILE, 1, "", None), 0, "run")
    for number in range(stored):
        text = {"prompt": HOSTILE, "answer": HOSTILE, "kept": [[0], [0], [0]]}
        writer.add({**row(HOSTILE, number), **text}, b"x")
    writer.quarantine(HOSTILE, 9, "text_missing", HOSTILE)
    writer.commit(last=True)
    page_of(folder / "cache", folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("stored", [0, 1])
def test_an_empty_or_tiny_cache_with_hostile_text_has_a_page(tmp_path: Path, stored: int) -> None:
    page = hostile_page(tmp_path, stored).read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "{{ 7*7 }}" in page, "no template is filled in"
    assert page.count("</script>") == 2


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all pages."""
    with chromium() as started:
        yield started


def test_a_browser_runs_nothing_that_stands_in_the_data(browser: Any, tmp_path: Path) -> None:
    with opened(browser, hostile_page(tmp_path, 1)) as shown:
        shown.fill("#query", "onerror")
        assert shown.inner_text("#found") == "1 found."
        assert shown.evaluate("window.hacked") is None


def test_a_browser_opens_searches_and_prints_it_and_axe_finds_nothing(
    browser: Any, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    page_of(cache, out)
    with opened(browser, out) as page:
        charts = page.locator("svg.chart")
        assert charts.count() >= 8
        assert all(charts.nth(number).bounding_box()["height"] > 20 for number in range(charts.count()))
        assert page.locator("img").evaluate_all("all => all.every(one => one.alt.length > 0)")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.fill("#query", "S000")
        made_keys = PrunedCache(str(cache)).keys()
        hits = sum("s000" in key for key in made_keys)
        assert page.inner_text("#found") == f"{hits} found."
        assert page.locator("#results tbody tr").count() == hits > 5
        page.fill("#query", "no such key")
        assert page.inner_text("#found") == "Nothing found."
        page.fill("#query", "")
        assert page.locator("#results").is_hidden()
        assert page.pdf(format="A4").startswith(b"%PDF")
    for width, scheme in ((1280, "light"), (390, "dark")):
        with opened(browser, out, width, scheme, audited=True) as page:
            page.fill("#query", "s000")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert violations(page) == []


@pytest.fixture(scope="module")
def other(made: Path, tiny_model: Path, replicas: dict[str, Replica]) -> Path:
    """A second cache of one of the corpus's files, by another selector and a coarse codec."""
    settings = {"method__selector": "random", "cache__codec": "int2"}
    run_here(job_config(tiny_model, made / "corpus" / "a.tar", made / "other", **settings), replicas["llama"])
    return made / "other"


def test_two_caches_are_compared_sample_by_sample(cache: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared.html"
    assert main(["report", str(cache), str(other), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    shard = PrunedCache(str(other)).commits[0].shard.name
    assert f"<b>{len(PrunedCache(str(cache)).read_table(['key'], shard))}</b> samples in both" in page
    assert re.search(r"method.selector</th><td[^>]*>trio</td><td[^>]*>random<", page)
    assert page.count("data:image/webp") == 6


def test_a_browser_opens_a_comparison_and_axe_finds_nothing(
    browser: Any, cache: Path, other: Path, tmp_path: Path
) -> None:
    out = tmp_path / "compared.html"
    assert main(["report", str(cache), str(other), "--out", str(out)]) == 0
    with opened(browser, out, 390, audited=True) as shown:
        assert shown.locator("svg.chart").count() == 3
        assert violations(shown) == []


def test_a_pair_says_what_both_keep_and_how_their_answers_differ(cache: Path, other: Path) -> None:
    first, second = PrunedCache(str(cache)), PrunedCache(str(other))
    same = pair_samples(first, first, 1000)
    assert len(same.pairs) == len(first)
    assert same.same_tokens == 1
    assert set(same.column("overlap")) == {1.0}
    assert set(same.column("distance")) == {0.0}
    (pair,) = [one for one in pair_samples(first, second, 1000).pairs if one.key == "s0050"]
    rows = [one.row("s0050") for one in (first, second)]
    kept = [set(sample["kept"][-1]) for sample in rows]
    assert pair.overlap == len(kept[0] & kept[1]) / len(kept[0] | kept[1]) < 1
    assert 0 < pair.distance <= 1
    assert [first.rows_at([pair.number])[0], second.rows_at([pair.other_number])[0]] == rows


def test_caches_without_a_common_shard_are_refused(
    other: Path, made: Path, tiny_model: Path, replicas: dict[str, Replica], capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(job_config(tiny_model, made / "corpus" / "b.jsonl", made / "third"), replicas["llama"])
    assert main(["report", str(other), str(made / "third"), "--out", str(made / "x.html")]) == 2
    assert "no input shard in common" in capsys.readouterr().err
    assert main(["report", str(other), str(made / "third"), "--out", str(made / "x.html"), "--verify"]) == 2


def test_a_coarse_codec_moves_answers_and_an_exact_one_does_not(cache: Path, other: Path, tiny_model: Path) -> None:
    model, how = ModelConfig(name=str(tiny_model)), Reread(S3Config())
    exact = measure_divergence(PrunedCache(str(cache)), model, how, 6)
    coarse = measure_divergence(PrunedCache(str(other)), model, how, 6)
    assert len(exact) == len(coarse) == 6
    assert exact.max() < 1e-5
    assert coarse.mean() > 1e-5
