"""TRIO written out the slow, plain way, to hold the package against: whole decoder layers, autograd, a greedy loop.

Only Hugging Face modules and positions that are renumbered from 0 after each prune point, as the authors do it
(arXiv 2602.04657); no function of the package is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache


def run_layer(language_model: Any, number: int, hidden: Tensor, cache: DynamicCache | None = None) -> Tensor:
    """One causal decoder layer over (1, n, d) rows that follow those in `cache`, at positions counted from
    0 in that layer.
    """
    before = 0 if cache is None else cache.get_seq_length(number)
    rows = hidden.shape[1]
    position = torch.arange(before, before + rows)[None]
    future = torch.arange(before + rows)[None] > torch.arange(before, before + rows)[:, None]
    mask = torch.zeros(rows, before + rows, dtype=hidden.dtype).masked_fill(future, float("-inf"))
    output = language_model.layers[number](
        hidden,
        attention_mask=mask[None, None],
        position_ids=position,
        position_embeddings=language_model.rotary_emb(hidden, position),
        past_key_values=cache,
    )
    return output[0] if isinstance(output, tuple) else output


def autograd_saliency(language_model: Any, head: Any, number: int, hidden: Tensor, supervised: Sequence[int]) -> Tensor:
    """Gradient norm (S,) at each of the (S, d) rows, through the whole of layer `number` and full-sequence logits."""
    with torch.enable_grad():
        leaf = hidden.detach().clone().requires_grad_()
        logits = head(language_model.norm(run_layer(language_model, number, leaf[None])))[0]
        inside = [row for row in supervised if len(leaf) + row >= 0]
        logits = logits[inside]
        F.cross_entropy(logits, logits.detach().argmax(-1)).backward()
    assert leaf.grad is not None
    return leaf.grad.norm(dim=-1)


def greedy_suppression(score: Sequence[float], features: Tensor, keep: int, threshold: float) -> list[int]:
    """The tokens kept of (N, d) `features`, ascending: one candidate after the other, each against all kept before."""
    unit = F.normalize(features.float(), dim=-1)
    similarity = (unit @ unit.T).tolist()
    order = sorted(range(len(score)), key=lambda token: -score[token])
    kept: list[int] = []
    for token in order:
        if len(kept) < keep and all(similarity[token][other] < threshold for other in kept):
            kept.append(token)
    for token in order:
        if len(kept) < keep and token not in kept:
            kept.append(token)
    return sorted(kept)


@dataclass
class ReferencePrefill:
    """`saliency` and `kept` by prune point (original image-token numbers), `logits` (vocabulary,) for the
    first answer token.
    """

    cache: DynamicCache
    saliency: list[Tensor]
    kept: list[list[int]]
    logits: Tensor

    @property
    def lengths(self) -> list[int]:
        """Rows that each layer holds."""
        return [self.cache.get_seq_length(layer) for layer in range(len(self.cache.layers))]


@torch.no_grad()
def reference_prefill(
    language_model: Any,
    head: Any,
    embeds: Tensor,
    is_image: Tensor,
    prune_points: Sequence[int],
    keep: Sequence[int],
    supervised: Sequence[int] = (-5, -4, -3, -2),
    threshold: float = 0.8,
    forced: Sequence[Sequence[int]] | None = None,
) -> ReferencePrefill:
    """A pruned prefill of one prompt, (S, d) embeddings, layer by layer. `forced` overrules the choice
    with given tokens.
    """
    cache = DynamicCache()
    saliency, kept = [], []
    hidden, number = embeds, torch.where(is_image, is_image.cumsum(0) - 1, -1)
    for layer in range(len(language_model.layers)):
        if layer in prune_points:
            point = list(prune_points).index(layer)
            image_rows = (number >= 0).nonzero()[:, 0]
            score = autograd_saliency(language_model, head, layer, hidden, supervised)[image_rows]
            saliency.append(score)
            wanted = min(keep[point], len(image_rows))
            chosen = greedy_suppression(score.tolist(), hidden[image_rows], wanted, threshold)
            kept.append(number[image_rows[chosen]].tolist())
            if forced is not None:
                kept[-1] = list(forced[point])
            stays = (number < 0) | torch.isin(number, torch.tensor(kept[-1], dtype=number.dtype))
            hidden, number = hidden[stays], number[stays]
        hidden = run_layer(language_model, layer, hidden[None], cache)[0]
    return ReferencePrefill(cache, saliency, kept, head(language_model.norm(hidden[-1])))


@torch.no_grad()
def reference_decode(language_model: Any, head: Any, prefill: ReferencePrefill, token: int) -> Tensor:
    """(vocabulary,) logits after one more token, whose position in each layer is the number of rows held there."""
    hidden = language_model.embed_tokens(torch.tensor([[token]]))
    for layer in range(len(language_model.layers)):
        hidden = run_layer(language_model, layer, hidden, prefill.cache)
    return head(language_model.norm(hidden[0, -1]))


def reference_greedy(
    language_model: Any, head: Any, prefill: ReferencePrefill, tokens: int
) -> tuple[list[int], Tensor]:
    """Greedy answer of `tokens` tokens, and the logits (tokens + 1, vocabulary) of every step."""
    answer: list[int] = []
    logits = [prefill.logits]
    for _ in range(tokens):
        answer.append(int(logits[-1].argmax()))
        logits.append(reference_decode(language_model, head, prefill, answer[-1]))
    return answer, torch.stack(logits)


@torch.no_grad()
def eager_attention(model: Any, number: int, hidden: Tensor) -> Tensor:
    """(heads, S, S) attention probabilities of layer `number` over (S, d) rows; `model` must be set to eager."""
    block = model.model.layers[number]
    position = torch.arange(len(hidden))[None]
    future = torch.ones(len(hidden), len(hidden)).triu(1).bool()
    _, probs = block.self_attn(
        block.input_layernorm(hidden[None]),
        position_embeddings=model.model.rotary_emb(hidden[None], position),
        attention_mask=torch.zeros(future.shape).masked_fill(future, float("-inf"))[None, None],
    )
    return probs[0]
