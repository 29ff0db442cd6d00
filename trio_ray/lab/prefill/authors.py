"""TRIO's selection at the cost of its authors' released code, for comparison (arXiv 2602.04657)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.method.proxy import ProxyLayer, rms_norm, rotate
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.trio import Trio

LOSS_SCALE = 1024.0
"""Keeps half-precision gradients above zero, which their code does not; it costs nothing and the ranking is theirs."""


@dataclass(frozen=True)
class AuthorsTrio(Trio):
    """Keeps the tokens that `Trio` keeps, the way the released code finds them.

    Sample by sample: the whole proxy layer forward, logits of every row, backward through all of it; then the matrix of
    all similarities copied to the host, and a loop over candidates there.
    """

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """See `Selector`."""
        return torch.cat([self._saliency(hidden, proxy, start, stop) for start, stop in pairwise(rows.offsets)])

    def _saliency(self, hidden: Tensor, proxy: ProxyLayer, start: int, stop: int) -> Tensor:
        """(S,) fp32 gradient norms of the sample that holds rows `start` to `stop`."""
        inside = [stop - start + row for row in self.supervised_rows if stop - start + row >= 0]
        with torch.enable_grad():
            leaf = hidden[start:stop].detach().clone().requires_grad_()
            logits = _proxy_logits(leaf, proxy, proxy.cos[start:stop], proxy.sin[start:stop]).float()[inside]
            loss = F.cross_entropy(logits, logits.detach().argmax(-1))
            (gradient,) = torch.autograd.grad(loss * LOSS_SCALE, leaf)
        return torch.linalg.vector_norm(gradient.float(), dim=-1) / LOSS_SCALE

    def choose(self, score: Tensor, hidden: Tensor, slots: Tensor, real: Tensor, keep: Sequence[int]) -> Tensor:
        """See `Selector`."""
        chosen = torch.zeros(real.shape, dtype=torch.bool)
        for sample, wanted in enumerate(keep):
            tokens = int(real[sample].sum())
            unit = F.normalize(hidden[slots[sample, :tokens]].float(), dim=-1)
            similar = (unit @ unit.T).cpu() >= self.threshold
            order = score[sample, :tokens].sort(descending=True, stable=True).indices.tolist()
            chosen[sample, _greedy(order, similar, wanted)] = True
        return chosen.to(real.device)


def _proxy_logits(hidden: Tensor, proxy: ProxyLayer, cos: Tensor, sin: Tensor) -> Tensor:
    """(S, vocabulary) from (S, d): the whole layer, every row to the end."""
    normed = rms_norm(hidden, proxy.norm_weight, proxy.norm_eps)
    query, key, value = (
        F.linear(normed, weight, bias).unflatten(-1, (-1, proxy.head_dim))
        for weight, bias in (
            (proxy.q_weight, proxy.q_bias), (proxy.k_weight, proxy.k_bias), (proxy.v_weight, proxy.v_bias)
        )
    )  # fmt: skip
    out = F.scaled_dot_product_attention(
        rotate(query, cos, sin).transpose(0, 1)[None],
        rotate(key, cos, sin).transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        is_causal=True,
        scale=proxy.scaling,
        enable_gqa=proxy.heads != proxy.kv_heads,
    )
    return proxy.finish(out[0].transpose(0, 1).flatten(1), hidden)


def _greedy(order: Sequence[int], similar: Tensor, wanted: int) -> list[int]:
    """The first `wanted` of the candidates that resemble none before them; then the best of the others fill up."""
    kept: list[int] = []
    dropped = torch.zeros(len(similar), dtype=torch.bool)
    for token in order:
        if len(kept) == wanted:
            break
        if not dropped[token]:
            kept.append(token)
            dropped |= similar[token]
    taken = set(kept)
    return kept + [token for token in order if token not in taken][: wanted - len(kept)]
