"""The divergence is that of the model's own distributions, and nothing where nothing is pruned."""

from __future__ import annotations

import pytest
import torch

from trio_ray.calibration.answer_divergence import ANSWER_TOKENS, reference_batches
from trio_ray.config import DEFAULT_INSTRUCTION
from trio_ray.lab.accuracy.accuracy import prepared_batches
from trio_ray.lab.accuracy.methods import method_config
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.method.method import Method
from trio_ray.model.image_scope import Scope
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica


def prepared(replica: Replica, questions: list[HeldOutQuestion], scope: Scope) -> list[PreparedSample]:
    instruction = DEFAULT_INSTRUCTION if scope == "image" else None
    return [sample for batch in prepared_batches(replica, questions, 8, instruction) for sample in batch]


@pytest.mark.parametrize("scope", ["prompt", "image"])
def test_nothing_pruned_moves_nothing_and_pruning_does(
    bundled: Replica, questions: list[HeldOutQuestion], scope: Scope
) -> None:
    samples = prepared(bundled, questions, scope)
    batches = list(reference_batches(bundled, samples, scope, 2_000))
    images = {sample.images[0].hash for sample in samples}
    assert len(batches) > 1 or scope == "image"
    assert sum(len(batch.samples) for batch in batches) == (len(samples) if scope == "prompt" else len(images))
    unpruned = Method.unpruned(bundled.decoder.depth)
    assert max(value for batch in batches for value in batch.divergences(bundled, [unpruned])[0]) < 1e-6
    pruned = method_config("random", 0.05).build(bundled.decoder.depth)
    assert max(value for batch in batches for value in batch.divergences(bundled, [pruned])[0]) > 0.1


def test_a_prompts_divergence_is_that_of_whole_prefills(bundled: Replica, questions: list[HeldOutQuestion]) -> None:
    """The answer's tokens are written into the prompt one by one, and each prompt is prefilled anew, unpruned."""
    (sample,) = prepared(bundled, questions[:1], "prompt")
    (batch,) = reference_batches(bundled, [sample], "prompt", 10_000)
    (asked,) = batch.asked
    assert 1 <= len(asked.answer) <= ANSWER_TOKENS
    for number in range(len(asked.answer)):
        longer = PreparedSample(
            **{
                **vars(sample),
                "prompt_ids": (*sample.prompt_ids, *asked.answer[:number]),
                "input_ids": (*sample.input_ids, *asked.answer[:number]),
            }
        )
        logits = bundled.prefill([longer], Method.unpruned(bundled.decoder.depth)).prefill.logits[0]
        assert int(logits.argmax()) == asked.answer[number]
        torch.testing.assert_close(asked.reference[number], logits.log_softmax(-1), rtol=1e-4, atol=1e-4)
