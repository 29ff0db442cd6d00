"""The engine gives the tokens of the step-by-step reference, whatever is in the batch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.model.corpus import prepare, samples_of_all_grids
from tests.model.decode.stepwise import stepwise
from tests.model.test_image_scope import image_prefixes, prepare_images
from trio_ray.calibration.codec_loss import without_last_rows
from trio_ray.config import ModelConfig
from trio_ray.kv.prefix import Prefix
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.decode.engine import Engine, Request, answers_in_order, generate
from trio_ray.model.replica import Replica

SCHEDULE = Schedule(8, (1, 3, 5), retention=0.25)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def prefixes_of(replica: Replica, count: int) -> list[Prefix]:
    """Prefixes of samples of many lengths."""
    return replica.prefill(prepare(replica, samples_of_all_grids(count)), Method(SCHEDULE, Trio())).prefixes


def test_a_ragged_batch_equals_the_stepwise_reference(replica: Replica) -> None:
    """Of every family. Answers end at different steps, so that sequences leave and others enter."""
    prefixes = prefixes_of(replica, 24)
    assert len({prefix.length for prefix in prefixes}) > 7
    free = generate(replica.decoder, prefixes, 8)
    stops = [token for token, _ in Counter(answer[2] for answer in free).most_common(3)]
    expected = [stepwise(replica.decoder, [prefix], 8, stops)[0] for prefix in prefixes]
    engine = Engine(replica.decoder, max_sequences=5)
    requests = [Request(n, prefix, 8, stop_tokens=stops) for n, prefix in enumerate(prefixes)]
    assert answers_in_order(engine, requests) == expected
    assert len({len(answer) for answer in expected}) > 3
    assert not engine.busy


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scope", ["prompt", "image"])
def test_200_ragged_prefixes_of_the_bundled_model_equal_the_stepwise_reference(device: str, scope: str) -> None:
    """In fp32. Each of 40 prefixes also stands without its last one, two, three and four rows."""
    replica = Replica.load(ModelConfig(dtype="float32"), device=torch.device(device))
    schedule = Schedule(16, (1, 5, 8), retention=0.2)
    samples = samples_of_all_grids(40)
    tokens, questions = (3 if device == "cpu" else 24), None
    if scope == "prompt":
        whole = replica.prefill(prepare(replica, samples), Method(schedule, Trio())).prefixes
    else:
        whole = image_prefixes(replica, prepare_images(replica, samples), Method(schedule, Trio()))
        questions = [(5 + n % 90, 7, 9 + n % 50) for n in range(5 * len(whole))]
    prefixes = [without_last_rows(prefix, count) for prefix in whole for count in range(5)]
    expected = stepwise(replica.decoder, prefixes, tokens, questions=questions)
    assert generate(replica.decoder, prefixes, tokens, questions=questions) == expected
    assert len({tuple(answer) for answer in expected}) > 20


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_few_new_tokens(llama: Replica, tokens: int) -> None:
    prefixes = prefixes_of(llama, 2)
    answers = generate(llama.decoder, prefixes, tokens)
    assert answers == [answer[:tokens] for answer in generate(llama.decoder, prefixes, 5)]
