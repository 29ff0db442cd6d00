"""What a fit makes of rows."""

from __future__ import annotations

import pytest
import torch

from tests.kv.bases import DIM, HEADS, LEADS, make_basis, make_segments
from trio_ray.calibration.fit import analyse, groups_of
from trio_ray.kv.codecs.transform_bands import BANDS


def test_groups_cover_a_segment_evenly_within_the_limit() -> None:
    assert groups_of(3, 5, 10) == [(3, 5)]
    assert groups_of(1, 9, 4) == [(1, 3), (4, 3), (7, 3)]
    assert groups_of(0, 2, 1) == [(0, 1), (1, 1)]


def test_a_finer_step_keeps_more_components_and_wider_bands() -> None:
    coarse, fine = (make_basis(step).groups[1].image.counts for step in (2.0, 0.02))
    assert sum(coarse) < sum(fine)
    assert coarse[0] <= fine[0]


def test_components_are_in_bands_that_hold_what_they_had() -> None:
    """The widest first; all of them used."""
    for group in make_basis(0.1).groups:
        for part in group.kinds:
            assert sum(part.counts) == len(part.matrix)
            assert len(part.counts) == len(BANDS)


def test_expected_distortion_grows_with_the_step_up_to_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_segments(16, seed=1)[1]
    ones = torch.ones(3 * 2 * HEADS * DIM)
    analysis = analyse(batch, 1, 3, make_basis(0.1), (ones, ones), 64)
    image, text = analysis.kinds
    assert image.distortion(0.01) < image.distortion(0.1) < image.distortion(1e6) == pytest.approx(image.spread)
    assert image.count == sum(batch.image_counts)
    assert text.count == len(batch.text) - image.count - LEADS * len(batch.lengths)
    monkeypatch.setattr("trio_ray.calibration.fit.IMAGE_ROWS", 10)
    thinned = analyse(batch, 1, 3, make_basis(0.1), (ones, ones), 64).kinds[0]
    assert len(thinned.rows) == 10
    assert thinned.count == image.count
