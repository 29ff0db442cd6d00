"""Llama 3's generation prompt ends with a newline that its tokenizer merges with what follows: targets are stored for
every sample all the same, and conversations go on, as with a template that does not merge.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.corpora import sample, write_tar
from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import ModelConfig
from trio_ray.model.replica import Replica

ANSWERS = ("Yes", "\nThree of them.", "a red circle", "No, one.")


@pytest.fixture(scope="module")
def llama3(standins: dict[str, Path]) -> Replica:
    return Replica.load(ModelConfig(name=str(standins["llama3"]), dtype="float32"), device=torch.device("cpu"))


@pytest.mark.parametrize("scope", ["prompt", "image"])
def test_every_sample_gets_targets_and_a_conversation_goes_on(
    scope: str, llama3: Replica, standins: dict[str, Path], tmp_path: Path
) -> None:
    members = [
        sample(number, json={"question": "Is there a circle?", "answer": answer})
        for number, answer in enumerate(ANSWERS)
    ]
    config = job_config(
        standins["llama3"], write_tar(tmp_path / "a.tar", members), tmp_path / "cache",
        cache__targets="top_k", cache__scope=scope,
    )  # fmt: skip
    reports = run_here(config, llama3)
    assert (sum(one.stored for one in reports), sum(one.without_targets for one in reports)) == (4, 0)
    cache = PrunedCache(config.output)
    stored = list(cache.stream())
    prompts = [item.row["prompt"] for item in stored]
    for item in stored:
        ids = item.row["answer_ids"]
        assert llama3.writer.decode(ids) == item.row["answer"].strip()
        assert ids[-1] in llama3.stop_tokens
        assert len(item.row["target_ids"]) == len(item.row["target_logprobs"]) == len(ids)
    prefixes = [item.prefix for item in stored]
    conversation = llama3.converse(prefixes, prompts)
    if scope == "prompt":
        assert all(prompt.endswith("<|end_header_id|>\n") for prompt in prompts)
        whole = llama3.writer.ids(prompts[0] + "\nThree")
        assert whole[: len(llama3.writer.ids(prompts[0]))] != llama3.writer.ids(prompts[0]), "the tokenizer merges"
        assert conversation.answer(4) == llama3.generate(prefixes, 4)
    else:
        assert conversation.ask(["Is there a circle?"] * 4, 4) == llama3.ask(
            prefixes, prompts, ["Is there a circle?"] * 4, 4
        )
    assert len(conversation.ask(["And how many?"] * 4, 4)) == 4
