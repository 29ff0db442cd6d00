"""Does a layer-local score say what the whole model would? Three studies over held-out questions.

(a) How far a single prune at each depth moves the next-token distribution; (b) how well the layer-local saliency ranks
tokens as the gradient of the model's true output does; (c) what pruning costs fine questions and coarse ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.lab.accuracy.accuracy import Result
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.method.method import Method
from trio_ray.method.rows import PackedRows
from trio_ray.method.saliency import proxy_saliency
from trio_ray.method.selectors.trio import AUTHORS_ROWS
from trio_ray.model.attention import packed_attention
from trio_ray.model.prefill import select
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica


@torch.no_grad()
def depth_divergence(
    replica: Replica,
    batch: Sequence[PreparedSample],
    depths: Sequence[int],
    methods: dict[str, Method],
    share: float,
) -> list[dict[str, Any]]:
    """KL divergence, in nats, of the unpruned from the pruned first-token distribution, one prune point at a time.

    Args:
        replica: the model.
        batch: prepared questions.
        depths: layers before which the prune is tried.
        methods: by name; their selectors and positions count, their schedules do not.
        share: of the image tokens that stay behind the prune point.

    Returns:
        A record for each selector and depth, with the divergence and first-token agreement of every question.
    """
    hidden, rows = replica.embed(batch)
    before = [hidden]
    for number in range(replica.decoder.depth):
        before.append(_layer(replica, before[-1], rows, number))
    full = _logits(replica, before[-1], rows).log_softmax(-1)
    keep = [max(1, round(share * count)) for count in rows.image_counts]
    records = []
    for depth in depths:
        for name, method in methods.items():
            selection = select(replica.decoder, before[depth], rows, depth, keep, method)
            left, left_rows = before[depth], rows
            if selection is not None:
                left, left_rows = left[selection.rows], rows.keep(selection.rows, keep, method.positions)
            for number in range(depth, replica.decoder.depth):
                left = _layer(replica, left, left_rows, number)
            pruned = _logits(replica, left, left_rows)
            divergence = F.kl_div(pruned.log_softmax(-1), full, reduction="none", log_target=True).sum(-1)
            agrees = pruned.argmax(-1) == full.argmax(-1)
            records.append({"selector": name, "depth": depth, "kl": divergence.tolist(), "agrees": agrees.tolist()})
    return records


def rank_agreement(
    replica: Replica, batch: Sequence[PreparedSample], depths: Sequence[int], supervised: Sequence[int] = AUTHORS_ROWS
) -> list[dict[str, Any]]:
    """Spearman correlation, over a question's image tokens, of the local saliency with the end-to-end gradient's norm.

    The end-to-end gradient is that of the cross-entropy of the model's own first answer token, at the hidden states
    before layer `depth`, with nothing pruned. `overlap` is the share of the best tenth that both have in common.
    """
    hidden, rows = replica.embed(batch)
    records = []
    for depth in range(max(depths) + 1):
        if depth in depths:
            tables = replica.decoder.tables(hidden, rows.position)
            local = proxy_saliency(hidden, rows, replica.decoder.proxy(depth, tables), supervised)
            true = _end_to_end(replica, hidden, rows, depth)
            pairs = [
                (local[mask], true[mask])
                for mask in (rows.is_image & (rows.sample == sample) for sample in range(len(batch)))
            ]
            records.append(
                {
                    "depth": depth,
                    "spearman": [_spearman(a, b) for a, b in pairs],
                    "overlap": [_overlap(a, b) for a, b in pairs],
                }
            )
        with torch.no_grad():
            hidden = _layer(replica, hidden, rows, depth)
    return records


def fine_and_coarse(results: Sequence[Result], questions: Sequence[HeldOutQuestion]) -> list[dict[str, Any]]:
    """Accuracy of each result on questions that need the tiles' detail, and on the others; None where none is asked."""
    fine = np.array([question.fine for question in questions])
    return [
        {
            "method": result.setting.name,
            "retention": result.setting.retention,
            "fine": float(result.right[fine].mean()) if fine.any() else None,
            "coarse": float(result.right[~fine].mean()) if not fine.all() else None,
            "fine_questions": int(fine.sum()),
            "coarse_questions": int((~fine).sum()),
        }
        for result in results
    ]


def _layer(replica: Replica, hidden: Tensor, rows: PackedRows, number: int) -> Tensor:
    attention = packed_attention("sdpa")
    tables = replica.decoder.tables(hidden, rows.position)
    shape = (rows.total, replica.decoder.kv_heads, replica.decoder.head_dim)
    return replica.decoder.run_layer(
        number,
        hidden,
        tables,
        lambda q, k, v, scale: attention(q, k, v, rows, scale),
        hidden.new_empty(shape),
        hidden.new_empty(shape),
    )


def _logits(replica: Replica, hidden: Tensor, rows: PackedRows) -> Tensor:
    """(B, vocabulary) fp32, for the first answer token."""
    return replica.decoder.logits(hidden[rows.last_rows]).float()


def _end_to_end(replica: Replica, hidden: Tensor, rows: PackedRows, depth: int) -> Tensor:
    """(T,) fp32 norm of the true loss's gradient at the rows before layer `depth`."""
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        out = leaf
        for number in range(depth, replica.decoder.depth):
            out = _layer(replica, out, rows, number)
        logits = _logits(replica, out, rows)
        loss = F.cross_entropy(logits, logits.detach().argmax(-1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return torch.linalg.vector_norm(gradient.float(), dim=-1)


def _spearman(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def _overlap(a: Tensor, b: Tensor) -> float:
    count = max(1, len(a) // 10)
    best = [set(x.topk(count).indices.tolist()) for x in (a, b)]
    return len(best[0] & best[1]) / count
