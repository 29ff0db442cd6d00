"""vLLM's HTTP server over a cache of scope image: many requests at once, preempted, sharing blocks or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.export.vllm.ours import NEW_TOKENS, Ours, without_stop
from tests.export.vllm.requests import named, prefix_ids, salt
from tests.export.vllm.server import Server
from trio_ray.cli import main
from trio_ray.model.decode.engine import generate

AT_ONCE = 20
BLOCK_ROWS = 32


@pytest.fixture(scope="module", autouse=True)
def ready(server: Server) -> None:
    """The server answers."""
    server.wait()


def body(ours: Ours, row: dict[str, Any], question: list[int], **extra: Any) -> dict[str, Any]:
    """A request about a stored image."""
    ids = prefix_ids(row, ours.replica.image_token_id, question)
    return {
        "prompt": ids,
        "cache_salt": salt(row),
        "kv_transfer_params": named(row),
        "max_tokens": NEW_TOKENS,
        **extra,
    }


def ids_behind_salt(ours: Ours, row: dict[str, Any]) -> tuple[int, ...]:
    """What vLLM would know a prefix by, were it not for the salt."""
    return tuple(prefix_ids(row, ours.replica.image_token_id))


def sharing_rows(ours: Ours) -> tuple[int, ...]:
    """The ids, of more than a block, that the prefixes of most different images have in common."""
    images: dict[tuple[int, ...], set[str]] = {}
    for row in ours.image_rows:
        images.setdefault(ids_behind_salt(ours, row), set()).add(row["images"][0]["hash"])
    return max((ids for ids in images if len(ids) >= BLOCK_ROWS), key=lambda ids: len(images[ids]))


def tokens(answers: list[tuple[int, dict[str, Any]]]) -> list[list[int]]:
    """The answers' tokens; all requests must have succeeded."""
    assert [status for status, _ in answers] == [200] * len(answers), answers[0]
    return [without_stop(answer["choices"][0]["token_ids"], (2,)) for _, answer in answers]


def test_keys_and_values_from_s3_are_our_answers_20_requests_at_once(server: Server, ours: Ours) -> None:
    bodies = [body(ours, row, question) for row, question in zip(ours.image_rows, ours.questions, strict=True)]
    assert tokens(server.post_all("/v1/completions", bodies, AT_ONCE)) == ours.image


def test_requests_that_are_preempted_and_resumed_answer_the_same(server: Server, ours: Ours) -> None:
    """Long answers need more blocks than there are; whoever is preempted has its prefix loaded again."""
    rows, questions = ours.image_rows[::5], ours.questions[::5]
    prefixes = [ours.caches.kv_image.prefix(row) for row in rows]
    wanted = generate(ours.replica.decoder, prefixes, 80, (), questions)
    before = server.counter("num_preemptions")
    bodies = [
        body(ours, row, question, max_tokens=80, ignore_eos=True) for row, question in zip(rows, questions, strict=True)
    ]
    answers = server.post_all("/v1/completions", bodies, AT_ONCE)
    assert [answer["choices"][0]["token_ids"] for _, answer in answers] == wanted
    assert server.counter("num_preemptions") > before


def test_a_second_question_reuses_the_images_blocks_and_no_other_images(server: Server, ours: Ours) -> None:
    """vLLM counts them. Other images, of as many rows and so the same ids, get their own answers."""
    shared = sharing_rows(ours)
    same = [row for row in ours.image_rows if ids_behind_salt(ours, row) == shared]
    assert len({row["images"][0]["hash"] for row in same}) > 1
    asked = ours.questions[:4]
    wanted = [
        generate(ours.replica.decoder, [ours.caches.kv_image.prefix(row)] * len(asked), NEW_TOKENS, (2,), asked)
        for row in same
    ]
    for row, answers in zip(same, wanted, strict=True):
        found = []
        for number, question in enumerate(asked):
            before = server.counter("prefix_cache_hits")
            found += tokens([server.post("/v1/completions", body(ours, row, question))])
            reused = server.counter("prefix_cache_hits") - before
            if number:
                assert reused >= len(shared) // BLOCK_ROWS * BLOCK_ROWS
        assert found == [without_stop(answer, (2,)) for answer in answers]


def test_exported_bodies_are_answered_as_our_engine_does(server: Server, ours: Ours, tmp_path: Path) -> None:
    """Prompt embeddings, image rows in a chat whose template writes BOS, and keys and values."""
    for cache, wanted in (
        (ours.caches.embeds_prompt, ours.embeds_prompt),
        (ours.caches.embeds_image, ours.embeds_image),
        (ours.caches.kv_image, ours.image),
    ):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        assert main(["export", cache.uri, "--to", "vllm", "--out", str(out), "--limit", "20", "--bodies"]) == 0
        requests = [json.loads(line) for line in (out / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
        found = server.post_all(requests[0]["url"], [request["body"] for request in requests], AT_ONCE)
        assert tokens(found) == wanted[:20]


def test_a_key_that_is_not_in_the_cache_is_an_error_and_the_server_goes_on(server: Server, ours: Ours) -> None:
    row, question = ours.image_rows[0], ours.questions[0]
    absent = {**body(ours, row, question), "cache_salt": "absent", "kv_transfer_params": {"key": "absent"}}
    status, _ = server.post("/v1/completions", absent)
    assert status == 500
    assert "no committed sample has this key" in server.log.read_text(errors="replace")
    assert tokens([server.post("/v1/completions", body(ours, row, question))]) == ours.image[:1]
