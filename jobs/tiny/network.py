"""The forward pass of training: many questions behind one image, and what every patch shows as a second task.

It runs the modules of `LlavaNextForConditionalGeneration` themselves; only the way rows see each other is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import LlavaNextForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from jobs.tiny.architecture import PAD, PATCHES, Recipe, build_model
from jobs.tiny.examples import NEWLINE, UNLABELLED, label_sizes
from jobs.tiny.stream import Arrays, batch_shares

ATTENTION = "shared_image"
_compiled_block_mask = torch.compile(create_block_mask)


@dataclass(frozen=True)
class Losses:
    """`answers`: cross-entropy of the answers' tokens, and the logits (batch, rows, vocabulary) it came from."""

    answers: Tensor
    logits: Tensor
    patches: Tensor


class PatchHeads(nn.Module):
    """Reads shape, colour and mark off every patch, and off the class token which of them its tile holds.

    The second is what gives the class token, and so its attention, a meaning, as CLIP's training would.
    """

    def __init__(self, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.patch = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.tile = nn.Linear(width, sum(sizes))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean loss. features (tiles, 1 + patches, width), labels (tiles, patches, 3)."""
        labels = labels.long()
        loss = features.new_zeros((), dtype=torch.float32)
        present = []
        for i, head in enumerate(self.patch):
            wanted = labels[..., i]
            loss = loss + F.cross_entropy(
                head(features[:, 1:]).flatten(0, 1).float(), wanted.flatten(), ignore_index=UNLABELLED
            )
            seen = F.one_hot(wanted.where(wanted != UNLABELLED, 0), self.sizes[i])
            present.append(seen.amax(dim=1))
        tile = self.tile(features[:, 0]).float()
        return loss + F.binary_cross_entropy_with_logits(tile, torch.cat(present, dim=-1).float())


class SharedImageTraining(nn.Module):
    """The model with its training heads. `run_decoder` False trains the vision tower on its own."""

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__()
        model = build_model(recipe, seed)
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _shared_image_attention)
        model.set_attn_implementation({"text_config": ATTENTION, "vision_config": "sdpa"})
        self.model: LlavaNextForConditionalGeneration = model
        self.heads = PatchHeads(model.config.vision_config.hidden_size, label_sizes(recipe.family))
        self.register_buffer("mean", torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1) * 255, persistent=False)

    def compile_layers(self) -> None:
        """Compile one vision and one decoder layer; the others of their kind share the code."""
        for layer in [*self.model.model.vision_tower.encoder.layers, *self.model.model.language_model.layers]:
            layer.compile()

    def forward(self, arrays: Arrays, rows: Tensor, run_decoder: bool = True) -> Losses:
        """Losses over the examples `rows` of `arrays`, a batch made up as `batch_shares` says."""
        features = self._vision(_real_tiles(arrays["tiles"], rows))
        patches = self.heads(features, _real_tiles(arrays["labels"], rows))
        if not run_decoder:
            return Losses(patches.new_zeros(()), patches, patches)
        inputs = self._embed(features[:, 1:], arrays, rows)
        logits = self._decode(inputs, arrays["segments"][rows], arrays["positions"][rows].long())
        targets = arrays["targets"][rows].long()
        answers = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=PAD)
        return Losses(answers, logits, patches)

    def _vision(self, tiles: Tensor) -> Tensor:
        """uint8 (tiles, 3, side, side) to (tiles, 1 + patches, width): what `vision_feature_layer` -2 selects."""
        tower = self.model.model.vision_tower
        hidden: Tensor = tower.pre_layrnorm(tower.embeddings((tiles - self.mean) / self.std))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        return hidden

    def _embed(self, features: Tensor, arrays: Arrays, rows: Tensor) -> Tensor:
        """Word embeddings, with the projected patches and `image_newline` where the image is: (batch, rows, width)."""
        inner = self.model.model
        projected = inner.multi_modal_projector(features).flatten(0, 1)
        table = torch.cat([projected, inner.image_newline[None].to(projected.dtype)])
        sources = arrays["sources"][rows].long()
        tile_counts = arrays["tile_count"][rows].long()
        start = (tile_counts.cumsum(0) - tile_counts)[:, None] * PATCHES
        sources = torch.where(sources == NEWLINE, len(projected), start + sources)
        ids = arrays["ids"][rows].long()
        is_image = ids == self.model.config.image_token_id
        place = (is_image.cumsum(1) - 1).clamp(0, sources.shape[1] - 1)
        return torch.where(is_image[..., None], table[sources.gather(1, place)], inner.get_input_embeddings()(ids))

    def _decode(self, hidden: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
        decoder = self.model.model.language_model
        mask = _mask(segments)
        position_embeddings = decoder.rotary_emb(hidden, positions)
        for layer in decoder.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=position_embeddings)
        logits: Tensor = self.model.lm_head(decoder.norm(hidden))
        return logits


def _real_tiles(values: Tensor, rows: Tensor) -> Tensor:
    """The tiles that a batch's examples really have, one after another: (examples, 5, ...) to (tiles, ...)."""
    shares = batch_shares(len(rows))
    parts = zip(torch.split(rows, [count for _, count in shares]), shares, strict=True)
    return torch.cat([values[part, :tiles].flatten(0, 1) for part, (tiles, _) in parts])


def _mask(segments: Tensor) -> BlockMask | Tensor:
    """Who sees whom: everything before it in the shared rows (segment 0) and in its own segment.

    Flex attention skips the empty blocks, but it has no backward on the CPU; there the mask is written out.
    """
    batch, rows = segments.shape
    if segments.is_cuda:

        def sees(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (k <= q) & ((segments[b, k] == 0) | (segments[b, k] == segments[b, q]))

        return _compiled_block_mask(sees, batch, None, rows, rows, device=segments.device)
    causal = torch.ones(rows, rows, dtype=torch.bool).tril()
    own = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    return (causal & own)[:, None]


def _shared_image_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | Tensor,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention under the mask of `_mask`, in the form that Hugging Face's attention registry asks for."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if isinstance(attention_mask, BlockMask):
        query, key = query.to(value.dtype), key.to(value.dtype)  # the rotation leaves them in float32
        out = flex_attention(query, key, value, block_mask=attention_mask, scale=scaling)
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out.transpose(1, 2).contiguous(), None
