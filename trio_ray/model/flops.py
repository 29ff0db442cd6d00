"""The arithmetic that a sample needs: matrix products and attention, counted from shapes, two FLOP a multiply-add.

It is work that the result needs, not work that some implementation does: no padding, causal attention at its true half,
the closed-form score (`trio_ray.method.saliency`). Element-wise operations and suppression are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from trio_ray.method.schedule import Schedule


@dataclass(frozen=True)
class PromptFlops:
    """FLOP of one prompt in the decoder.

    Attributes:
        segments: of each run of layers between prune points, the first of them before any prune.
        score: of the saliency, all prune points together.
        head: of `lm_head`, on the last row alone.
    """

    segments: tuple[int, ...]
    score: int
    head: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.segments) + self.score + self.head


@dataclass(frozen=True)
class FlopCounter:
    """Counts for the shapes of one model.

    Attributes:
        config: the model's `LlavaNextConfig`.
    """

    config: Any

    def image(self, tiles: int) -> int:
        """FLOP of an image's pass through the vision tower, up to the last layer that is used, and the projector."""
        vision = self.config.vision_config
        width, patches = vision.hidden_size, (vision.image_size // vision.patch_size) ** 2
        rows = patches + 1
        embedding = 2 * patches * vision.num_channels * vision.patch_size**2 * width
        products = 2 * rows * (4 * width * width + 2 * width * vision.intermediate_size)
        attention = 2 * 2 * rows * rows * width
        layers = self._feature_layers
        hidden = self.config.text_config.hidden_size
        projector = 2 * patches * (len(layers) * width * hidden + hidden * hidden)
        return tiles * (embedding + max(layers) * (products + attention) + projector)

    def layer(self, rows: int) -> int:
        """FLOP of one decoder layer over a sequence of `rows` rows."""
        text = self.config.text_config
        width = text.hidden_size
        attention_weights = 2 * width * self._heads_width + 2 * width * self._kv_width
        weights = attention_weights + 3 * width * text.intermediate_size
        pairs = rows * (rows + 1) // 2
        return 2 * rows * weights + 2 * 2 * pairs * self._heads_width

    def score(self, rows: int, supervised: int) -> int:
        """FLOP of the closed-form saliency of a prune point over `rows` rows with `supervised` rows of loss.

        Of all rows: keys and their gradient, the supervised rows' attention on keys and on normed rows, forward and
        back. Of the supervised rows: the whole layer and `lm_head`, forward and back.
        """
        text = self.config.text_config
        width = text.hidden_size
        everywhere = 2 * 2 * rows * width * self._kv_width
        attention = 2 * 2 * supervised * rows * self._heads_width
        averages = 3 * 2 * supervised * rows * text.num_attention_heads * width
        weights = self._heads_width * width * 2 + 3 * width * text.intermediate_size + width * text.vocab_size
        once = self._heads_width * width
        return everywhere + attention + averages + 2 * supervised * (2 * weights + once)

    def prompt(
        self, rows: int, image_tokens: int = 0, schedule: Schedule | None = None, supervised: int = 0
    ) -> PromptFlops:
        """FLOP of a prompt of `rows` rows, `image_tokens` of them image rows.

        Args:
            rows: of the unpruned prompt.
            image_tokens: how many of them a schedule can drop.
            schedule: what is dropped where; None runs all layers over all rows.
            supervised: rows of loss of the score; 0 for a selection that computes nothing.
        """
        head = 2 * self.config.text_config.hidden_size * self.config.text_config.vocab_size
        depth = self.config.text_config.num_hidden_layers
        if schedule is None:
            return PromptFlops((depth * self.layer(rows),), 0, head)
        lengths = [rows, *(rows - image_tokens + count for count in schedule.counts(image_tokens))]
        edges = (0, *schedule.prune_points, depth)
        segments = [
            sum(self.layer(rows if layer < schedule.full_layers else length) for layer in range(start, stop))
            for length, (start, stop) in zip(lengths, pairwise(edges), strict=True)
        ]
        dropped_from = [before for before, after in pairwise(lengths) if after < before]
        score = sum(self.score(length, supervised) for length in dropped_from) if supervised else 0
        return PromptFlops(tuple(segments), score, head)

    @property
    def _heads_width(self) -> int:
        return self.config.text_config.num_attention_heads * self._head_dim

    @property
    def _kv_width(self) -> int:
        return self.config.text_config.num_key_value_heads * self._head_dim

    @property
    def _head_dim(self) -> int:
        text = self.config.text_config
        return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads

    @property
    def _feature_layers(self) -> Sequence[int]:
        """Numbers of the tower's outputs that are used; 0 is its embedding."""
        layers = self.config.vision_feature_layer
        depth = self.config.vision_config.num_hidden_layers
        return [
            layer if layer >= 0 else depth + 1 + layer for layer in ([layers] if isinstance(layers, int) else layers)
        ]
