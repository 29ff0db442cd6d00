"""Prompts of all kinds in one packed batch, for what holds of every selector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.method.layers import WIDTH, proxy_of, random_model
from tests.method.test_saliency import prompt
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.selector import Selection, Selector

PROMPTS = [
    prompt(3, 40, 9), torch.cat([prompt(2, 21, 4), prompt(1, 15, 7)]), prompt(0, 17, 6), prompt(5, 25, 3),
    prompt(2, 30, 1), prompt(3, 0, 4), prompt(4, 12, 0), prompt(0, 2, 1),
]  # fmt: skip
"""Among them one with two pictures, one without any, and one whose only text row is its last."""

IMAGES = [int(mask.sum()) for mask in PROMPTS]
KEEP = [11, 20, 3, 25, 0, 0, 12, 1]
KEEP_LATER = [4, 7, 3, 1, 0, 0, 5, 0]


def states(masks: Sequence[Tensor] = PROMPTS, seed: int = 0) -> list[Tensor]:
    """(S, d) hidden states of each prompt, all leaning one way, so that some rows resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    lean = torch.randn(WIDTH, generator=generator)
    return [torch.randn(len(mask), WIDTH, generator=generator) + lean for mask in masks]


def select(
    selector: Selector, members: Sequence[int], keep: Sequence[int], family: str = "mistral_grouped"
) -> tuple[PackedRows, Selection]:
    """What a selector does with these of the prompts, packed in this order."""
    model, hidden = random_model(family), states()
    packed = torch.cat([hidden[member] for member in members])
    rows = PackedRows.pack([PROMPTS[member] for member in members], "cpu")
    return rows, selector.select(packed, rows, proxy_of(model, packed, rows), keep)


def kept_numbers(rows: PackedRows, selection: Selection) -> list[list[int]]:
    """Each sample's kept image tokens, by their original numbers."""
    sample, number = rows.sample[selection.rows], rows.image_index[selection.rows]
    return [number[(sample == s) & (number >= 0)].tolist() for s in range(len(rows.lengths))]
