"""Rounds: every contestant in every round, in turn, on inputs that no earlier pass has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch

from tests.model.corpus import make_sample, prepare, words
from trio_ray.lab.prefill.contestant import Contestant
from trio_ray.lab.prefill.peak import matmul_peak
from trio_ray.lab.prefill.pruned import Pruned
from trio_ray.lab.prefill.rounds import run_rounds
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.random import RandomChoice
from trio_ray.model.replica import Replica
from trio_ray.model.vision import TileFeatures
from trio_ray.tensors import measure

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Recording(Contestant):
    """Writes down what it was given, in a list that all share."""

    name: str
    log: list[str]
    made: list[int] = field(default_factory=list)

    def batches(self, number: int) -> Sequence[str]:
        self.made.append(number)
        return [f"{self.name}{number}.0", f"{self.name}{number}.1"]

    def run(self, batch: str) -> None:
        self.log.append(batch)


def test_contestants_take_turns_after_a_warm_up() -> None:
    log: list[str] = []
    contestants = {name: Recording(name, log) for name in "ab"}
    steps: list[str] = []
    timings = run_rounds(contestants, 3, CPU, lambda: 1e9, steps.append)
    warm_up = ["a-1.0", "a-1.1", "b-1.0", "b-1.1"]
    turns = [f"{name}{number}.{batch}" for number in range(3) for name in "ab" for batch in range(2)]
    assert log == warm_up + turns
    assert contestants["a"].made == [-1, 0, 1, 2]
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 3, "b": 3}
    assert all(second > 0 for seconds in timings.seconds.values() for second in seconds)
    assert timings.peak == [1e9] * 3
    assert timings.peak_bytes == {"a": None, "b": None}
    assert steps[0] == "warm-up: a"
    assert steps[-1] == "round 3 of 3: b"


def test_no_pass_finds_images_that_an_earlier_one_encoded(llama: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica remembers the image that it saw last, which must not spare any pass the tower."""
    samples = prepare(llama, [make_sample([(40, 50)], words(n), 7) for n in (2, 5)])
    contestant = Pruned(llama, samples, 10_000, Method(Schedule(8, (1, 3, 5), retention=0.3), RandomChoice()))
    seen: list[int] = []
    encode = llama.vision.encode

    def count(tiles: torch.Tensor, with_attention: bool = False) -> TileFeatures:
        seen.append(len(tiles))
        return encode(tiles, with_attention)

    monkeypatch.setattr(llama.vision, "encode", count)
    for number in range(3):
        for batch in contestant.batches(number):
            contestant.run(batch)
    assert seen == [len(samples[0].images[0].tiles)] * 3


def test_measuring_tells_seconds_and_what_it_cannot_know() -> None:
    measured = measure(CPU, lambda: torch.randn(200, 200) @ torch.randn(200, 200))
    assert 0 < measured.seconds < 10
    assert measured.peak_bytes is None


def test_the_peak_is_a_rate_that_a_cpu_can_have() -> None:
    assert 1e8 < matmul_peak(CPU, torch.float32) < 1e14
