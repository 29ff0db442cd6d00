"""How much a model's answer depends on each stored key and value.

A codec's error e changes the distribution of an answer token, to second order, by a divergence of e' F e / 2, where
F = J' (diag(p) - p p') J is the Fisher information of the token's distribution p and J the derivative of the logits.
The diagonal of F is the mean square of a gradient along a random direction of that covariance, for which one backward
pass is enough: on the logits, sqrt(p) z - p (sqrt(p) . z) with z standard normal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.kv.prefix import Prefix
from trio_ray.model.decoder import Decoder

Pair = tuple[Tensor, Tensor]
"""Keys and values."""

TEMPERATURE = 3.0
"""Temperature by which distributions are flattened, so that the gradients of a model that is sure of its answer do not
vanish.
"""


def gradients(
    decoder: Decoder, prefix: Prefix, tokens: Sequence[int], first: int, generator: torch.Generator
) -> Iterator[Pair]:
    """Per segment the gradients at its keys and values, (layers, rows, kv_heads, head_dim) fp32 each.

    Args:
        decoder: the model.
        prefix: on the model's device.
        tokens: what follows the prefix.
        first: the first of them whose prediction counts; those behind it count too.
        generator: on the CPU, makes the direction.
    """
    with torch.enable_grad():
        keys = [segment.keys.detach().requires_grad_() for segment in prefix.segments]
        values = [segment.values.detach().requires_grad_() for segment in prefix.segments]
        layers = [
            (key, value)
            for run in zip(keys, values, strict=True)
            for key, value in zip(run[0].unbind(), run[1].unbind(), strict=True)
        ]
        logits = _predict(decoder, layers, prefix.length, tokens)[first:]
        along = torch.autograd.grad((logits * _direction(logits.detach(), generator)).sum(), [*keys, *values])
    for key, value in zip(along[: len(keys)], along[len(keys) :], strict=True):
        yield key.float(), value.float()


def _predict(decoder: Decoder, layers: Sequence[Pair], length: int, tokens: Sequence[int]) -> Tensor:
    """(tokens, vocabulary) fp32 logits for what follows each token; differentiable in the stored keys and values."""
    device = layers[0][0].device
    hidden = decoder.embed(torch.tensor(tokens, device=device))
    tables = decoder.tables(hidden, torch.arange(length, length + len(tokens), device=device))
    shape = (len(tokens), decoder.kv_heads, decoder.head_dim)
    for number, stored in enumerate(layers):

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, stored: Pair = stored) -> Tensor:
            return _attend(query, torch.cat([stored[0], key]), torch.cat([stored[1], value]), scale)

        keys, values = hidden.new_empty(shape), hidden.new_empty(shape)
        hidden = decoder.run_layer(number, hidden, tables, attend, keys, values)
    return decoder.logits(hidden).float()


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """(n, heads, D) queries over all rows, the last n of which are their own."""
    seen = torch.ones(len(query), len(keys), dtype=torch.bool, device=query.device).tril(len(keys) - len(query))
    q, k, v = (x.transpose(0, 1)[None] for x in (query, keys, values))
    out = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=query.shape[1] != keys.shape[1])
    return out[0].transpose(0, 1)


def _direction(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Random directions on the logits, with the covariance of the distributions."""
    chances = (logits / TEMPERATURE).softmax(-1)
    noise = torch.randn(logits.shape, generator=generator).to(logits.device) * chances.sqrt()
    return noise - chances * noise.sum(-1, keepdim=True)
