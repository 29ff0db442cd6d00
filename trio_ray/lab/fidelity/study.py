"""The three studies of `lab fidelity` over one set of questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trio_ray.lab.accuracy.accuracy import Setting, measure_accuracy, prepared_batches
from trio_ray.lab.accuracy.methods import method_config
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.lab.fidelity import fidelity, fidelity_report
from trio_ray.model.replica import Replica
from trio_ray.study import Study

STUDIED = ("trio", "trio-plus", "attention", "random")
"""Methods of the first and the last study."""


def measure_fidelity(
    replica: Replica,
    questions: Sequence[HeldOutQuestion],
    retention: float,
    share: float,
    batch_size: int,
    on_done: Callable[[int], None] = lambda done: None,
) -> Study:
    """Measure how faithful the layer-local score is to the whole model.

    Args:
        replica: the model, in float32.
        questions: held-out questions.
        retention: of the methods in the study of accuracy, mean over layers.
        share: of the image tokens that the single prune of the study of depths keeps.
        batch_size: questions packed together.
        on_done: told how many questions the first two studies have done.
    """
    depths = range(replica.decoder.depth)
    methods = {name: method_config(name, retention).build(len(depths)) for name in STUDIED}
    divergence, agreement = [], []
    done = 0
    for batch in prepared_batches(replica, questions, batch_size):
        divergence += fidelity.depth_divergence(replica, batch, depths, methods, share)
        agreement += fidelity.rank_agreement(replica, batch, depths)
        done += len(batch)
        on_done(done)
    settings = [Setting("all tokens", 1.0, method_config("trio", 1.0))]
    settings += [Setting(name, retention, method_config(name, retention)) for name in STUDIED]
    detail = fidelity.fine_and_coarse(measure_accuracy(replica, questions, settings, batch_size), questions)
    return fidelity_report.study(
        fidelity_report.pool(divergence, ("selector", "depth")), fidelity_report.pool(agreement, ("depth",)), detail
    )
