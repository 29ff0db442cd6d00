"""Stored prefixes in the hands of Hugging Face's own `generate`, alone or as a ragged batch.

The stock masks assume that all layers of a cache are equally long. So the cache here reports the prompt's logical
length, pads each layer on the left to its own longest sequence, and comes with an attention function that makes its
mask from the layer's own rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from trio_ray.kv.prefix import Prefix

ATTENTION_NAME = "trio_prefix"
"""Name of the attention function. No mask function has this name, so transformers passes no mask of its own."""

_PADDING = "trio_padding"


class PrefixCache(DynamicCache):
    """A transformers cache that starts from pruned prefixes.

    Args:
        prefixes: one for each sequence of the batch, made with one schedule.
        device: where the model is.
    """

    def __init__(self, prefixes: Sequence[Prefix], device: torch.device | str) -> None:
        super().__init__()
        self._prompt_rows = max(prefix.length for prefix in prefixes)
        self._appended = 0
        self.layers = []
        for number in range(len(prefixes[0].segments)):
            segments = [prefix.segments[number] for prefix in prefixes]
            longest = max(segment.rows for segment in segments)
            padding = torch.tensor([longest - segment.rows for segment in segments], device=device)
            for layer in range(segments[0].layers):
                keys = _left_padded([segment.keys[layer] for segment in segments], longest, device)
                values = _left_padded([segment.values[layer] for segment in segments], longest, device)
                self.layers.append(_PrefixLayer(keys, values, padding))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new rows to a layer; counts them once, in the last layer."""
        if layer_idx == len(self.layers) - 1:
            self._appended += key_states.shape[-2]
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Rows of the unpruned sequence, whatever a layer holds of them."""
        return self._prompt_rows + self._appended


class _PrefixLayer(DynamicLayer):
    """One layer's rows, (B, kv_heads, rows, D), of which the first `padding[b]` are nothing."""

    def __init__(self, keys: Tensor, values: Tensor, padding: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._padding = padding

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        # The attention function gets this very tensor next and nothing else of the cache.
        setattr(keys, _PADDING, self._padding)
        return keys, values


@contextmanager
def generate_inputs(model: Any, prefixes: Sequence[Prefix]) -> Iterator[dict[str, Any]]:
    """Arguments for `model.generate` that make it go on from stored prefixes.

    The prompts stand in `input_ids` as padding (the cache already has them), followed by each prefix's stored first
    answer token. So an answer begins with the last column of `input_ids`:

        with generate_inputs(model, prefixes) as inputs:
            output = model.generate(**inputs, max_new_tokens=63, do_sample=False)
        answers = output[:, inputs["input_ids"].shape[1] - 1 :]
        texts = processor.batch_decode(answers, skip_special_tokens=True)

    Within the context the model's decoder uses the attention function that such caches need; behind it, the one that it
    had before. A cache serves one call of `generate`.

    Args:
        model: the `LlavaNextForConditionalGeneration` that made the prefixes.
        prefixes: one for each sequence of the batch, made with one schedule, of scope prompt.

    Raises:
        NoFirstToken: a prefix of scope image.
    """
    first = [prefix.first_token for prefix in prefixes]
    longest = max(prefix.length for prefix in prefixes)
    ids = torch.zeros((len(prefixes), longest + 1), dtype=torch.long)
    ids[:, -1] = torch.tensor(first)
    mask = torch.ones_like(ids)
    for number, prefix in enumerate(prefixes):
        mask[number, : longest - prefix.length] = 0
    AttentionInterface.register(ATTENTION_NAME, prefix_attention)
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": ATTENTION_NAME})
    try:
        yield {
            "input_ids": ids.to(model.device),
            "attention_mask": mask.to(model.device),
            "past_key_values": PrefixCache(prefixes, model.device),
            "use_cache": True,
        }
    finally:
        model.set_attn_implementation({"text_config": before})


def prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention aligned at the end: the last query sees all keys of its sequence. Shapes as in transformers."""
    queries, keys = query.shape[-2], key.shape[-2]
    slot = torch.arange(keys, device=query.device)
    visible = (slot <= slot[keys - queries :, None])[None, None]
    padding = getattr(key, _PADDING, None)
    if padding is not None:
        visible = visible & (slot >= padding[:, None, None, None])
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=visible, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2).contiguous(), None


def _left_padded(sequences: Sequence[Tensor], longest: int, device: torch.device | str) -> Tensor:
    """(rows, kv_heads, D) of each sequence -> (B, kv_heads, longest, D)."""
    rows = [F.pad(sequence.to(device), (0, 0, 0, 0, longest - len(sequence), 0)) for sequence in sequences]
    return torch.stack(rows).transpose(1, 2)
