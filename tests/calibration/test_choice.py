"""The step of a basis is chosen by what was measured, on prefixes that the fit has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.tiny_models import WORDS
from trio_ray.calibration.choice import HELD_OUT, REACH, TRIALS, Fitted, coarsest_step, fit, hold_out
from trio_ray.calibration.codec_loss import in_16_bit, without_last_rows
from trio_ray.calibration.corpus import DrawnPrefix
from trio_ray.kv.codecs.registry import make_codec
from trio_ray.lab.codecs.continued_text import Passage, prefill_text
from trio_ray.lab.codecs.language_model import LanguageModel
from trio_ray.model.replica import Replica


@pytest.fixture(scope="module")
def drawn(replicas: dict[str, Replica]) -> list[DrawnPrefix]:
    """Prefixes of random words behind one and the same token."""
    rows = torch.randint(5, len(WORDS), (40, 39), generator=torch.Generator().manual_seed(3)).tolist()
    prefixes = in_16_bit(prefill_text(_language(replicas), [Passage([1, *row], [7]) for row in rows])).split()
    return [DrawnPrefix(without_last_rows(p, 1), row[-1]) for p, row in zip(prefixes, rows, strict=True)]


@pytest.fixture(scope="module")
def fitted(replicas: dict[str, Replica], drawn: list[DrawnPrefix]) -> Fitted:
    return fit(_language(replicas), drawn, {}, {"drawn": "here"})


def _language(replicas: dict[str, Replica]) -> LanguageModel:
    replica = replicas["mistral"]
    return LanguageModel("tiny", replica.decoder, None, replica.stop_tokens, replica.device)


def counted(curve: Callable[[float], float]) -> tuple[Callable[[float], float], list[float]]:
    """A curve that writes down where it was asked."""
    asked: list[float] = []

    def measure(step: float) -> float:
        asked.append(step)
        return curve(step)

    return measure, asked


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("off", [0.05, 0.3, 1.0, 3.0, 20.0])
def test_a_step_close_to_the_coarsest_is_found_however_far_off_the_start_is(power: float, off: float) -> None:
    """Half of what is allowed is used up at least, and the coarsest such step is 1."""
    measure, asked = counted(lambda step: 0.003 * step**power)
    step = coarsest_step(measure, 0.003, off)
    assert step is not None
    assert 0.0015 <= 0.003 * step**power <= 0.003
    assert len(asked) <= TRIALS


def test_a_cliff_is_approached_from_below() -> None:
    measure, asked = counted(lambda step: 1e-5 if step < 0.77 else 5.0)
    step = coarsest_step(measure, 0.003, 0.2)
    assert step is not None
    assert 0.5 < step < 0.77
    assert len(asked) <= TRIALS


def test_there_is_no_step_where_not_even_the_finest_fits() -> None:
    measure, asked = counted(lambda step: 0.01 + step)
    assert coarsest_step(measure, 0.003, 1.0) is None
    assert min(asked) == 1 / REACH
    assert len(asked) <= TRIALS


def test_nothing_coarser_than_is_of_use_is_tried_where_anything_fits() -> None:
    measure, asked = counted(lambda step: 0.0)
    assert coarsest_step(measure, 0.003, 1.0) == max(asked) == REACH


def test_what_is_held_back_is_about_no_image_that_the_fit_has_seen(drawn: list[DrawnPrefix]) -> None:
    """Three questions an image, drawn in turns."""
    items = [replace(item, about=frozenset({f"image {number % 13}"})) for number, item in enumerate(drawn)]
    seen, rest = hold_out(items)
    assert len(seen) + len(rest) == len(items)
    assert len(rest) >= len(items) // HELD_OUT
    assert not {image for item in seen for image in item.about} & {image for item in rest for image in item.about}


def test_a_fifth_is_held_back_of_texts_and_of_what_is_all_about_one_image(drawn: list[DrawnPrefix]) -> None:
    for items in (drawn, [replace(item, about=frozenset({"the image"})) for item in drawn]):
        seen, rest = hold_out(items)
        assert (len(seen), len(rest)) == (32, 8)
        assert [*seen, *rest] == items


def test_the_more_may_change_the_smaller_and_no_more_changes_than_may(fitted: Fitted) -> None:
    close, loose = (fitted.choose(divergence) for divergence in (0.02, 0.5))
    assert close is not None
    assert loose is not None
    assert close.step < loose.step
    assert close.measured.ratio < loose.measured.ratio
    for wanted, found in ((0.02, close), (0.5, loose)):
        assert 0 < found.measured.divergence < found.measured.most <= wanted
        assert found.measured.samples == len(fitted.held_out) == 8
    assert fitted.calibration.samples == 32


def test_there_is_no_codec_where_so_few_components_cannot_come_so_close(
    replicas: dict[str, Replica], drawn: list[DrawnPrefix]
) -> None:
    assert fit(_language(replicas), drawn, {}, {}, rank=2).choose(1e-6) is None


def test_a_codec_has_the_parameters_asked_for_and_its_basis_by_its_hash(fitted: Fitted) -> None:
    found = fitted.at(0.01, {"zstd": 3})
    spec = found.codec.spec
    assert spec["zstd"] == 3
    again = make_codec(spec, lambda digest: {spec["basis"]: found.basis}[digest])
    assert again.spec == spec
    assert fitted.ratio(0.01) == pytest.approx(fitted.at(0.01).measured.ratio)
