"""The depth profile is what a model loses without its image, and a schedule keeps rows where it loses most."""

from __future__ import annotations

from trio_ray.calibration.answer_divergence import reference_batches
from trio_ray.calibration.depth_profile import PROBES, depth_profile, profile_shape
from trio_ray.config import DEFAULT_INSTRUCTION, MethodConfig
from trio_ray.lab.accuracy.accuracy import prepared_batches
from trio_ray.lab.accuracy.questions import held_out_questions
from trio_ray.model.replica import Replica


def test_the_profile_of_the_bundled_model_falls_from_much_to_nothing(bundled: Replica) -> None:
    """It reads its image in the first half of its layers."""
    questions = held_out_questions(16, per_scene=2, split="validation", workers=1)
    (samples,) = prepared_batches(bundled, questions, 16, DEFAULT_INSTRUCTION)
    batches = list(reference_batches(bundled, samples, "image", 2_000))
    config = MethodConfig(retention=0.1, selector="trio-plus", full_depth=1.0)
    profile = depth_profile(bundled, batches, config)
    assert len(profile) == bundled.decoder.depth == PROBES
    assert profile[0] > 1.0
    assert profile[4] > 20 * profile[10]
    assert max(profile[11:]) < 0.05


def test_a_shape_keeps_a_root_of_the_profile() -> None:
    """One prune point for each step; what rises again is noise; no layer is left with nothing."""
    shape = profile_shape([4.0, 4.0, 1.0, 1.2, 0.25, 0.0, 0.01, 0.0], 0.5)
    assert shape.prune_points == (0, 2, 4, 5)
    assert shape.weights == (1.0, 0.5, 0.25, 0.02)
    assert profile_shape([1.0] * 24, 1 / 3).prune_points == (0,)
    assert profile_shape([1.0] * 12 + [0.0] * 12, 1 / 3).points_for(24) == (0, 12)
