"""The vision tower over the tiles of many images at once, and their features in the language model's space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.errors import ModelError
from trio_ray.method.visionzip import VisionZip
from trio_ray.model.tiles import NEWLINE, Tiler
from trio_ray.tensors import fused, to_device

TILES_PER_BATCH = 64
"""Tiles that pass the tower together: enough to fill a GPU, few enough to bound its memory."""


@dataclass(frozen=True)
class TileFeatures:
    """What the tower says of tiles, patch by patch: (n * side * side, d) features before the projector.

    Where it was asked for, `attention` (n * side * side,) fp32 of the class token, summed over heads, and the `keys`
    (n * side * side, d) of the same layer, the last one that ran.
    """

    hidden: Tensor
    attention: Tensor | None = None
    keys: Tensor | None = None


class VisionEncoder:
    """Runs a LLaVA-NeXT model's vision tower and projector.

    Args:
        model: a `LlavaNextModel`.
        tiler: geometry and normalisation of its tiles.
        dtype: arithmetic of the tower.
    """

    def __init__(self, model: Any, tiler: Tiler, dtype: torch.dtype) -> None:
        self._model = model
        self._tower = getattr(model.vision_tower, "vision_model", model.vision_tower)
        self._tiler = tiler
        self._dtype = dtype
        config = model.config
        layers = config.vision_feature_layer
        depth = config.vision_config.num_hidden_layers
        self._feature_layers = [
            layer if layer >= 0 else depth + 1 + layer for layer in ([layers] if isinstance(layers, int) else layers)
        ]
        strategy = config.vision_feature_select_strategy
        if strategy != "default":
            raise ModelError(f"vision_feature_select_strategy {strategy!r} is not supported; it must be 'default'")
        if config.vision_config.model_type != "clip_vision_model":
            raise ModelError(f"vision tower {config.vision_config.model_type!r} is not supported; it must be CLIP's")

    @torch.no_grad()
    def encode(self, tiles: Tensor, with_attention: bool = False) -> TileFeatures:
        """Features of (n, 3, tile, tile) uint8 tiles on the device, not yet projected."""
        batches = [self._encode_batch(batch, with_attention) for batch in tiles.split(TILES_PER_BATCH)]
        hidden, attention, keys = (
            None if parts[0] is None else torch.cat(parts).flatten(0, 1) for parts in zip(*batches, strict=True)
        )
        assert hidden is not None
        return TileFeatures(hidden, attention, keys)

    @torch.no_grad()
    def image_tokens(self, hidden: Tensor, maps: Sequence[Tensor], tiles: Sequence[int]) -> list[Tensor]:
        """Project features and lay them out as image tokens.

        Args:
            hidden: (all tiles * side * side, d) features of several images, in order.
            maps: per image its token map (`Tiler.token_map`), numbers counted within the image.
            tiles: number of tiles of each image.

        Returns:
            Per image (tokens, d), with `image_newline` where its map says so.
        """
        flat = to_device(torch.cat(self._feature_numbers(maps, tiles)), hidden.device)
        tokens = self._model.multi_modal_projector(hidden)[flat.clamp_min(0)]
        return list(self._with_newlines(tokens, flat).split([len(token_map) for token_map in maps]))

    @torch.no_grad()
    def reduced_tokens(
        self,
        features: TileFeatures,
        maps: Sequence[Tensor],
        tiles: Sequence[int],
        keep: Sequence[tuple[int, int]],
        encoder_reducer: VisionZip,
    ) -> list[tuple[Tensor, Tensor]]:
        """As `image_tokens`, but reduced by `encoder_reducer`.

        For each (image number, count) of `keep` so many tokens of that image, and their (count,) numbers within it.
        """
        assert features.attention is not None
        assert features.keys is not None
        numbers = [flat.to(features.hidden.device) for flat in self._feature_numbers(maps, tiles)]
        reduced = []
        for image, wanted in keep:
            flat = numbers[image]
            slots = flat.clamp_min(0)
            attention = torch.where(flat == NEWLINE, -1.0, features.attention[slots].float())
            hidden, index = encoder_reducer.reduce(features.hidden[slots], attention, features.keys[slots], wanted)
            tokens = self._model.multi_modal_projector(hidden)
            reduced.append((self._with_newlines(tokens, flat[index]), index))
        return reduced

    def _feature_numbers(self, maps: Sequence[Tensor], tiles: Sequence[int]) -> list[Tensor]:
        """Per image (tokens,) numbers into the features of all images, or NEWLINE."""
        numbers, at = [], 0
        for token_map, count in zip(maps, tiles, strict=True):
            numbers.append(torch.where(token_map == NEWLINE, NEWLINE, token_map + at))
            at += count * self._tiler.side**2
        return numbers

    def _with_newlines(self, tokens: Tensor, flat: Tensor) -> Tensor:
        """(n, d) tokens with the model's `image_newline` where `flat` (n,) says NEWLINE."""
        return torch.where((flat == NEWLINE)[:, None], self._model.image_newline.to(tokens.dtype), tokens)

    def _encode_batch(self, tiles: Tensor, with_attention: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        hidden = self._tower.pre_layrnorm(self._tower.embeddings(self._tiler.normalise(tiles).to(self._dtype)))
        picked, before = {0: hidden}, hidden
        # Layers behind the last one whose features are used never run.
        for number in range(max(self._feature_layers)):
            before = hidden
            hidden = _tower_layer(hidden, self._tower.encoder.layers[number])
            picked[number + 1] = hidden
        features = torch.cat([picked[layer] for layer in self._feature_layers], dim=-1)[:, 1:]  # no class token
        if not with_attention:
            return features, None, None
        attention, keys = _class_attention(self._tower.encoder.layers[max(self._feature_layers) - 1], before)
        return features, attention, keys


@fused(hidden=(0,))
def _tower_layer(hidden: Tensor, layer: Any) -> Tensor:
    """One pre-norm layer of CLIP's tower over (n, patches, d)."""
    block = layer.self_attn
    normed = layer.layer_norm1(hidden)
    query, key, value = (
        projection(normed).unflatten(-1, (-1, block.head_dim)).transpose(1, 2)
        for projection in (block.q_proj, block.k_proj, block.v_proj)
    )
    out = F.scaled_dot_product_attention(query, key, value, scale=block.scale)
    hidden = hidden + block.out_proj(out.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def _class_attention(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The class token's attention on the patches, (n, patches) summed over heads, and their keys, (n, patches, d)."""
    block = layer.self_attn
    normed = layer.layer_norm1(hidden)
    query, keys = block.q_proj(normed[:, :1]), block.k_proj(normed)
    heads = (x.unflatten(-1, (-1, block.head_dim)).transpose(1, 2) for x in (query, keys))
    scores = next(heads) @ next(heads).transpose(2, 3) * block.scale
    return scores.float().softmax(-1)[:, :, 0, 1:].sum(1), keys[:, 1:]
