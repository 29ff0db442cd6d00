"""The vision tower over the tiles of many images at once, and their features in the language model's space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trio_ray.errors import ModelError
from trio_ray.model.tiles import NEWLINE, Tiler

TILES_PER_BATCH = 64
"""Tiles that pass the tower together: enough to fill a GPU, few enough to bound its memory."""


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
        self._drop_class_token = config.vision_feature_select_strategy == "default"
        if config.vision_config.model_type != "clip_vision_model":
            raise ModelError(f"vision tower {config.vision_config.model_type!r} is not supported; it must be CLIP's")

    @torch.no_grad()
    def encode(self, tiles: Tensor) -> Tensor:
        """(n, 3, tile, tile) uint8 on the device -> (n * side * side, d) projected features, tile by tile."""
        batches = [self._encode_batch(batch) for batch in tiles.split(TILES_PER_BATCH)]
        return torch.cat(batches).flatten(0, 1)

    def _encode_batch(self, tiles: Tensor) -> Tensor:
        hidden = self._tower.pre_layrnorm(self._tower.embeddings(self._tiler.normalise(tiles).to(self._dtype)))
        picked = {0: hidden}
        # Layers behind the last one whose features are used never run.
        for number in range(max(self._feature_layers)):
            output = self._tower.encoder.layers[number](hidden, attention_mask=None)
            hidden = output[0] if isinstance(output, tuple) else output
            picked[number + 1] = hidden
        features = torch.cat([picked[layer] for layer in self._feature_layers], dim=-1)
        if self._drop_class_token:
            features = features[:, 1:]
        return self._model.multi_modal_projector(features)

    @torch.no_grad()
    def image_tokens(self, features: Tensor, maps: Sequence[Tensor], tiles: Sequence[int]) -> list[Tensor]:
        """Lay features out as image tokens.

        Args:
            features: (all tiles * side * side, d) of several images, in order.
            maps: per image its token map (`Tiler.token_map`), numbers counted within the image.
            tiles: number of tiles of each image.

        Returns:
            Per image (tokens, d), with `image_newline` where its map says so.
        """
        index, at = [], 0
        for token_map, count in zip(maps, tiles, strict=True):
            index.append(torch.where(token_map == NEWLINE, NEWLINE, token_map + at))
            at += count * self._tiler.side**2
        flat = torch.cat(index).to(features.device, non_blocking=True)
        newline = self._model.image_newline.to(features.dtype)
        tokens = torch.where((flat == NEWLINE)[:, None], newline, features[flat.clamp_min(0)])
        return list(tokens.split([len(token_map) for token_map in maps]))
