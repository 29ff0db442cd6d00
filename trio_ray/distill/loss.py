"""What a student is held against: true tokens, and the head of a teacher's distribution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""Stands for a true token that nobody knows."""


def truth_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, summed over the tokens whose label is not `IGNORED`.

    Args:
        logits: (n, vocabulary).
        labels: (n,) int64.
    """
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")


def teacher_loss(logits: Tensor, ids: Tensor, logprobs: Tensor, temperature: float) -> Tensor:
    """Divergence KL(teacher || student), summed over the tokens, in nats times the squared temperature.

    Of the teacher only its k likeliest tokens are known, so both are distributions over k + 1 outcomes: these tokens,
    and any other. Softened is the distribution over outcomes, p_i ** (1 / T) normalised; the square keeps the gradient
    at T's size (Hinton et al., arXiv 1503.02531).

    Args:
        logits: (n, vocabulary), the student's.
        ids: (n, k) int64, the teacher's likeliest tokens.
        logprobs: (n, k) fp32, their natural-log probabilities.
        temperature: T.
    """
    student = _with_the_rest(logits.float().log_softmax(-1).gather(-1, ids)) / temperature
    teacher = _with_the_rest(logprobs) / temperature
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)
    return divergence * temperature**2


def _with_the_rest(logprobs: Tensor) -> Tensor:
    """(n, k) log-probabilities -> (n, k + 1), the last one that of all other tokens together."""
    # Rounding can bring the sum to 1 or a little above; the floor is about one fp32 step below 1.
    rest = torch.log1p(-logprobs.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7))
    return torch.cat([logprobs, rest], -1)
