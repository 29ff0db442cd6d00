"""The CPU's share of a sample: what is prepared, and what comes back as a bad sample with its reason."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.model.corpus import make_sample, picture, png, samples_of_all_grids
from trio_ray.model.prepare import IMAGES_REMEMBERED, PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.source.sample import BadSample, Reason, Turn

GOOD = make_sample([(40, 50)], "what is it ?")


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (replace(GOOD, images=(b"",)), Reason.IMAGE_EMPTY),
        (replace(GOOD, images=(b"no image at all",)), Reason.IMAGE_CORRUPT),
        (replace(GOOD, images=(GOOD.images[0][:200],)), Reason.IMAGE_CORRUPT),
        (replace(GOOD, images=(*GOOD.images, b"")), Reason.IMAGE_EMPTY),
        (replace(GOOD, images=(png(picture(101, 100)),)), Reason.IMAGE_TOO_LARGE),
        (replace(GOOD, turns=(Turn("user", "<image> <image> what ?"),)), Reason.IMAGE_COUNT),
        (replace(GOOD, turns=(Turn("user", "the " * 3000),)), Reason.PROMPT_TOO_LONG),
    ],
)
def test_what_cannot_be_used_comes_back_with_its_reason(llama: Replica, sample: object, reason: Reason) -> None:
    result = llama.preparer(max_pixels=10_000).prepare(sample)  # type: ignore[arg-type]
    assert isinstance(result, BadSample)
    assert (result.key, result.index, result.reason) == (GOOD.key, GOOD.index, reason)
    assert result.detail


def test_a_prompt_as_long_as_the_context_leaves_no_room_for_an_answer(llama: Replica) -> None:
    preparer = llama.preparer(10_000)
    start = preparer.prepare(GOOD)
    assert isinstance(start, PreparedSample)
    spare = llama.decoder.context - start.rows
    fits = replace(GOOD, turns=(Turn("user", "what is it ?" + " the" * (spare - 1)),))
    exact = replace(GOOD, turns=(Turn("user", "what is it ?" + " the" * spare),))
    prepared = preparer.prepare(fits)
    assert isinstance(prepared, PreparedSample)
    assert prepared.rows == llama.decoder.context - 1
    assert isinstance(preparer.prepare(exact), BadSample)


def test_a_bad_sample_passes_through(llama: Replica) -> None:
    bad = BadSample("key", 3, Reason.TEXT_EMPTY, "nothing there")
    assert llama.preparer(10_000).prepare(bad) is bad


def test_what_a_prepared_sample_says_of_itself(llama: Replica) -> None:
    sample = replace(make_sample([(40, 50), (7, 300)], "what is it ?"), answer="red")
    prepared = llama.preparer(10_000).prepare(sample)
    assert isinstance(prepared, PreparedSample)
    assert [(image.height, image.width) for image in prepared.images] == [(40, 50), (7, 300)]
    assert prepared.image_tokens == sum(llama.tiler.token_count(*size) for size in ((40, 50), (7, 300)))
    assert prepared.rows == len(prepared.prompt_ids) + prepared.image_tokens - 2
    assert prepared.answer == "red"
    assert prepared.images[0].hash != prepared.images[1].hash


def test_an_image_that_follows_itself_is_decoded_once(llama: Replica) -> None:
    preparer = llama.preparer(10_000)
    first, again = preparer.prepare(GOOD), preparer.prepare(replace(GOOD, turns=(Turn("user", "how many ?"),)))
    assert isinstance(first, PreparedSample)
    assert isinstance(again, PreparedSample)
    assert first.images[0] is again.images[0]


def test_images_long_past_are_forgotten(llama: Replica) -> None:
    preparer = llama.preparer(10_000)
    first = preparer.prepare(GOOD)
    for seed in range(IMAGES_REMEMBERED + 1):
        preparer.prepare(make_sample([(20, 20)], "what ?", seed + 50))
    later = preparer.prepare(GOOD)
    assert isinstance(first, PreparedSample)
    assert isinstance(later, PreparedSample)
    assert first.images[0] is not later.images[0]
    assert first.images[0].hash == later.images[0].hash


def test_many_threads_prepare_as_one_does(llama: Replica) -> None:
    samples = samples_of_all_grids(20) * 3
    preparer = llama.preparer(100_000)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(preparer.prepare, samples))
    for sample, result in zip(samples, together, strict=True):
        alone = llama.preparer(100_000).prepare(sample)
        assert isinstance(result, PreparedSample)
        assert isinstance(alone, PreparedSample)
        assert result.input_ids == alone.input_ids
        assert [image.hash for image in result.images] == [image.hash for image in alone.images]
