"""A searched schedule has a row of its own beside the method that it was searched for."""

from __future__ import annotations

from trio_ray.lab.accuracy.accuracy import Setting
from trio_ray.lab.accuracy.found import found_settings
from trio_ray.lab.accuracy.methods import method_config
from trio_ray.lab.accuracy.questions import held_out_questions
from trio_ray.model.replica import Replica


def test_pruning_rows_without_an_encoder_step_get_a_searched_twin(bundled: Replica) -> None:
    settings = [
        Setting("all tokens", 1.0, method_config("trio", 1.0)),
        Setting("uniform", 0.2, method_config("uniform", 0.2)),
        Setting("visionzip", 0.2, method_config("visionzip", 0.2)),
    ]
    questions = held_out_questions(12, per_scene=1, split="validation", workers=1)
    ((twin, found),) = found_settings(bundled, questions, settings, None, 16_384, candidates=2)
    assert (twin.name, twin.retention) == ("uniform, auto", 0.2)
    assert twin.config == found.method
    assert twin.config.prune_points is not None
