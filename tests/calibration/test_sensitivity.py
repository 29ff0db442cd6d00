"""How much an answer depends on a stored key or value: against the true Fisher information."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.model.corpus import make_sample, prepare
from trio_ray.calibration.sensitivity import TEMPERATURE, gradients
from trio_ray.config import MethodConfig
from trio_ray.kv.prefix import Prefix
from trio_ray.model.continuation import Continuation
from trio_ray.model.replica import Replica

TOKENS = [5, 9, 3]


def prefix_of(replica: Replica) -> Prefix:
    config = MethodConfig(retention=0.4)
    samples = prepare(replica, [make_sample([(40, 60)], "what is this")])
    return replica.prefill(samples, config.build(replica.decoder.depth)).prefixes[0]


def test_the_mean_square_along_random_directions_is_the_information(replica: Replica) -> None:
    """The information of one value is found by finite differences: that of the tokens' distributions along it."""
    prefix = prefix_of(replica)
    generator = torch.Generator().manual_seed(0)
    draws = 400
    found = torch.zeros(2)
    for _ in range(draws):
        for number, (key, value) in enumerate(gradients(replica.decoder, prefix, TOKENS, 1, generator)):
            if number == 0:
                found += torch.tensor([key[0, 2, 0, 1] ** 2, value[0, 2, 0, 1] ** 2]) / draws
    for position, name in enumerate(("keys", "values")):
        torch.testing.assert_close(float(found[position]), information(replica, prefix, name), rtol=0.25, atol=0)


def information(replica: Replica, prefix: Prefix, name: str) -> float:
    """Of one entry, by the change of the logits."""

    def logits(shift: float) -> torch.Tensor:
        segment = prefix.segments[0]
        tensor = getattr(segment, name).clone()
        tensor[0, 2, 0, 1] += shift
        changed = type(segment)(**{**vars(segment), name: tensor})
        moved = replace(prefix, segments=(changed, *prefix.segments[1:]))
        return Continuation(replica.decoder, [moved], room=len(TOKENS)).score([TOKENS])[0][1:].double()

    slope = (logits(0.05) - logits(-0.05)) / 0.1
    chances = (logits(0) / TEMPERATURE).softmax(-1)
    mean = (chances * slope).sum(-1)
    return float(((chances * slope.square()).sum(-1) - mean.square()).sum())
