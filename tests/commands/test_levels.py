"""`inspect` and `generate` over caches of other levels and scopes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.corpora import samples, write_parquet, write_tar
from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cli import main
from trio_ray.model.replica import Replica

SETTINGS: dict[str, dict[str, Any]] = {
    "kv": {"cache__targets": "top_k"},
    "embeds": {"cache__level": "embeds"},
    "indices": {"cache__level": "indices"},
    "image": {"cache__scope": "image"},
    "image-embeds": {"cache__scope": "image", "cache__level": "embeds"},
    "image-indices": {"cache__scope": "image", "cache__level": "indices"},
}


@pytest.fixture(scope="module")
def caches(tiny_model: Path, replicas: dict[str, Replica], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("levels")
    corpus = write_tar(folder / "a.tar", samples(4))
    for name, settings in SETTINGS.items():
        run_here(job_config(tiny_model, corpus, folder / name, **settings), replicas["llama"])
    return folder


def answers(capsys: pytest.CaptureFixture[str], cache: Path, model: Path, *options: str) -> list[dict[str, Any]]:
    shared = ["--model", str(model), "--max-new-tokens", "6", "--batch", "3", "--json"]
    assert main(["generate", str(cache), *shared, *options]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(("computed", "stored"), [("indices", "kv"), ("image-indices", "image")])
def test_an_indices_cache_answers_as_the_kv_cache(
    caches: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], computed: str, stored: str
) -> None:
    assert answers(capsys, caches / computed, tiny_model) == answers(capsys, caches / stored, tiny_model)


@pytest.mark.parametrize("name", ["embeds", "image-embeds"])
def test_an_embeds_cache_answers_from_its_embeddings(
    caches: Path, tiny_model: Path, llama: Replica, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    cache = PrunedCache(str(caches / name))
    own = [turns[0]["text"] if turns else None for turns in cache.table.column("turns").to_pylist()]
    for item, key, question in zip(answers(capsys, caches / name, tiny_model), cache.keys(), own, strict=True):
        if question is None:
            wanted = llama.generate(llama.prefill_embeds([cache.embeds(key)]), 6)
        else:
            prefixes = llama.prefill_embeds([cache.embeds(key)], top_k=0)
            wanted = llama.ask(prefixes, [cache.row(key)["prompt"]], [question], 6)
            assert item["prompt"] == question
        assert [item["answer"]] == wanted


def test_any_question_is_put_to_images_and_to_nothing_else(
    caches: Path, tiny_model: Path, llama: Replica, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answers(capsys, caches / "image", tiny_model, "--question", "how many circle ?")
    stored = list(PrunedCache(str(caches / "image")).stream())
    prompts = [item.row["prompt"] for item in stored]
    asked = llama.ask([item.prefix for item in stored], prompts, ["how many circle ?"] * 4, 6)
    assert [item["answer"] for item in found] == asked
    assert {item["truth"] for item in found} == {None}
    assert main(["generate", str(caches / "kv"), "--question", "how many", "--model", str(tiny_model)]) == 2
    assert "--question: the prefixes of this cache end with questions of their own" in capsys.readouterr().err


def test_input_that_has_changed_is_refused(
    caches: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = caches / "a.tar"
    sound = corpus.read_bytes()
    try:
        write_tar(corpus, samples(4, first=30))
        assert main(["generate", str(caches / "indices"), "s0001", "--model", str(tiny_model)]) == 2
        assert "no longer holds the image" in capsys.readouterr().err
    finally:
        corpus.write_bytes(sound)


def test_a_table_that_has_lost_rows_is_refused_in_a_sentence(
    tiny_model: Path, llama: Replica, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the row was there is nothing any more."""
    table = write_parquet(tmp_path / "a.parquet", samples(4))
    config = job_config(tiny_model, table, tmp_path / "cache", cache__level="indices")
    run_here(config, llama)
    write_parquet(table, samples(2))
    for command in (["generate"], ["inspect", "--png", str(tmp_path / "x.png")]):
        assert main([command[0], config.output, "s0003", *command[1:]]) == 2
        assert "a.parquet" in capsys.readouterr().err


def test_inspect_says_what_each_level_holds(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, summary, line in (
        ("kv", "bytes of KV", "heads (4, 16), codec raw"),
        ("embeds", "bytes of embeddings", "float32, checksum"),
        ("indices", "nothing beside the rows (level indices)", "nothing beside this row"),
        ("image", "bytes of KV", "none: scope image"),
    ):
        assert main(["inspect", str(caches / name)]) == 0
        assert summary in capsys.readouterr().out
        assert main(["inspect", str(caches / name), "s0001"]) == 0
        shown = capsys.readouterr().out
        assert line in shown
        row = PrunedCache(str(caches / name)).row("s0001")
        assert shown.count("\ntarget ") == len(row["answer_ids"] or ())
        assert ("own user" in shown) is (name == "image")


def test_other_levels_and_scopes_have_a_report_and_can_be_compared(caches: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    for name in ("embeds", "indices", "image"):
        assert main(["report", str(caches / name), "--out", str(out), "--pictures", "1"]) == 0
        page = out.read_text(encoding="utf-8")
        assert ("Size beside the row" in page) == ("indices" not in name)
        assert ("Least sure of the first answer token" in page) == ("image" not in name)
        assert "data:image/webp" in page
        assert "<svg" in PrunedCache(str(caches / name))._repr_html_()
        assert main(["report", str(caches / "kv"), str(caches / name), "--out", str(out), "--pictures", "1"]) == 0
        assert "<b>4</b> samples in both" in out.read_text(encoding="utf-8")


def test_images_that_records_name_elsewhere_are_found_where_the_command_line_says(
    tiny_model: Path, llama: Replica, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are read again to draw them, and for level indices to answer; a cache does not hold where they were."""
    records, images = tmp_path / "records", tmp_path / "images"
    records.mkdir()
    images.mkdir()
    lines = []
    for member in samples(2):
        (images / f"{member['__key__']}.png").write_bytes(member["png"])  # type: ignore[arg-type]
        lines.append({"id": member["__key__"], "image": f"{member['__key__']}.png", "question": "what ?"})
    (records / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = job_config(
        tiny_model, records / "a.jsonl", tmp_path / "cache", cache__level="indices", source__image_root=str(images)
    )
    run_here(config, llama)
    picture = ["inspect", config.output, "s0001", "--png", str(tmp_path / "x.png")]
    for command in (picture, ["generate", config.output, "s0001"]):
        assert main(command) == 2
        sentence = capsys.readouterr().err.splitlines()[-1]
        assert sentence.startswith("trio-ray: ")
        assert "image_missing" in sentence
        assert "--image-root" in sentence
        assert main([*command, "--image-root", str(images)]) == 0
        capsys.readouterr()
    assert (tmp_path / "x.png").stat().st_size > 0
    lines = [{**line, "image": str(images / str(line["image"]))} for line in lines]
    (records / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(picture) == 2
    assert "image_outside" in capsys.readouterr().err
    assert main([*picture, "--allow-any-path"]) == 0
