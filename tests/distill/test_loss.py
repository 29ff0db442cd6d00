"""The student is held against exactly what is known of the teacher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.distill.loss import IGNORED, teacher_loss, truth_loss

VOCABULARY = 11


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()


def top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    logprobs, ids = logits.log_softmax(-1).topk(k)
    return ids, logprobs


def test_a_student_that_agrees_with_the_teacher_has_no_loss_and_no_gradient(logits: Tensor) -> None:
    student = logits.clone().requires_grad_()
    loss = teacher_loss(student, *top(logits, 4), temperature=1.7)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-5


def test_only_what_is_known_of_the_teacher_counts(logits: Tensor) -> None:
    """The mass outside the top k is one outcome: how the student shares it out makes no difference."""
    ids, logprobs = top(logits, 4)
    rest = torch.ones_like(logits, dtype=torch.bool).scatter(1, ids, False)
    mass = logits.masked_fill(~rest, -torch.inf).logsumexp(-1, keepdim=True)
    even = torch.where(rest, mass - torch.tensor(float(VOCABULARY - 4)).log(), logits)
    assert float(teacher_loss(even, ids, logprobs, 1.0)) == pytest.approx(0.0, abs=1e-5)
    assert float(teacher_loss(torch.where(rest, logits + 1, logits), ids, logprobs, 1.0)) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_it_is_the_divergence_over_k_plus_one_outcomes(logits: Tensor, temperature: float) -> None:
    ids, logprobs = top(logits, 3)
    student = logits.flip(0)
    total = 0.0
    for row in range(len(logits)):
        outcomes = []
        for known in (logprobs[row].exp(), student[row].softmax(-1)[ids[row]]):
            softened = torch.cat([known, 1 - known.sum(0, keepdim=True)]) ** (1 / temperature)
            outcomes.append(softened / softened.sum())
        p, q = outcomes
        total += float((p * (p / q).log()).sum()) * temperature**2
    assert float(teacher_loss(student, ids, logprobs, temperature)) == pytest.approx(total, rel=1e-4)


def test_a_teacher_that_is_certain_gives_a_finite_gradient() -> None:
    """Its top k sum up to 1, or by rounding to more, and nothing is left for the rest."""
    student = torch.zeros(1, VOCABULARY, requires_grad=True)
    loss = teacher_loss(student, torch.tensor([[3, 4]]), torch.tensor([[1e-7, -30.0]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(float(torch.tensor(float(VOCABULARY)).log()), rel=1e-3)
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_tokens_that_nobody_knows_do_not_count(logits: Tensor) -> None:
    labels = torch.tensor([1, IGNORED, 2, IGNORED, 3, 4])
    known = labels != IGNORED
    expected = F.cross_entropy(logits[known], labels[known], reduction="sum")
    assert float(truth_loss(logits, labels)) == pytest.approx(float(expected))
    assert float(truth_loss(logits, torch.full((6,), IGNORED))) == 0.0
