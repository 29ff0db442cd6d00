"""The information that an answer holds on each channel of the stored keys and values, over a calibration set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trio_ray.calibration.sensitivity import gradients
from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.model.decode.engine import generate
from trio_ray.model.decoder import Decoder

ANSWER_TOKENS = 3
"""How many tokens at the beginning of the model's own answer count: what these and the prompt's end predict."""


def channel_information(
    decoder: Decoder,
    prefixes: Sequence[Prefix],
    tails: Sequence[Sequence[int]],
    stop_tokens: Sequence[int],
    device: torch.device,
    on_sample: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Per segment (2, layers, 2, kv_heads, head_dim) fp32: of image rows and of text rows, of keys before their
    rotation and of values, the mean over rows of the information that the answer's tokens hold (`sensitivity`).

    Args:
        decoder: the model.
        prefixes: the calibration set, anywhere, each without the last rows of its prompt.
        tails: of each prompt the tokens of these rows, at least one.
        stop_tokens: end an answer.
        device: of the model.
        on_sample: called behind each prefix.
    """
    generator = torch.Generator().manual_seed(0)
    sums = [_zeros(segment).to(device) for segment in prefixes[0].segments]
    rows = torch.zeros(len(sums), 2, dtype=torch.float64, device=device)
    for prefix, tail in zip(prefixes, tails, strict=True):
        moved = prefix.on_device(device)
        tokens = [*tail, *_answer(decoder, moved, tail, stop_tokens)]
        for number, (key, value) in enumerate(gradients(decoder, moved, tokens, len(tail) - 1, generator)):
            segment = moved.segments[number]
            squares = torch.stack([_over_pairs(key), value.square()], 1).double()
            for kind, mask in enumerate((~segment.text, segment.text)):
                sums[number][kind] += squares[:, :, mask].sum(2)
                rows[number, kind] += mask.sum()
        on_sample()
    counts = rows.clamp_min(1)[..., None, None, None, None]
    return [(total / count).float() for total, count in zip(sums, counts, strict=True)]


def _answer(decoder: Decoder, prefix: Prefix, tail: Sequence[int], stop_tokens: Sequence[int]) -> list[int]:
    """The model's greedy answer to a prompt, up to the tokens that count and without the stop token."""
    (answer,) = generate(decoder, [prefix], ANSWER_TOKENS, stop_tokens, [tail])
    return [token for token in answer if token not in stop_tokens]


def _over_pairs(key: Tensor) -> Tensor:
    """Mean square over the two halves that rotate into each other: the rotation does not change it."""
    low, high = key.square().chunk(2, -1)
    return torch.cat([low + high] * 2, -1) / 2


def _zeros(segment: Segment) -> Tensor:
    layers, _, heads, dim = segment.keys.shape
    return torch.zeros((2, layers, 2, heads, dim), dtype=torch.float64)
