"""One LLaVA-NeXT model on one device, from prepared samples to pruned prefixes and on to answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trio_ray.config import MethodConfig, ModelConfig, PromptConfig
from trio_ray.errors import ConfigError
from trio_ray.kv.prefix import Prefix
from trio_ray.method.rows import PackedRows
from trio_ray.method.schedule import (
    AUTHORS_ENCODER_KEEP,
    AUTHORS_KEEP,
    DEFAULT_RETENTION,
    PLUS_KEEP,
    Schedule,
    default_prune_points,
    plus_prune_points,
)
from trio_ray.method.selector import Selector
from trio_ray.method.selectors import selector_named
from trio_ray.method.visionzip import VisionZip
from trio_ray.model.attention import Backend, choose_backend, packed_attention
from trio_ray.model.continuation import generate
from trio_ray.model.decoder import Decoder, default_device
from trio_ray.model.loading import load_model, model_folder, read_model_config, resolve_dtype
from trio_ray.model.prefill import pruned_prefill, split_prefixes
from trio_ray.model.prepare import PreparedImage, PreparedSample, SamplePreparer
from trio_ray.model.prompt import PromptWriter
from trio_ray.model.tiles import Tiler
from trio_ray.model.vision import VisionEncoder


@dataclass
class Replica:
    """A loaded model and everything a batch passes through."""

    decoder: Decoder
    vision: VisionEncoder
    writer: PromptWriter
    tiler: Tiler
    image_token_id: int
    stop_tokens: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    attention: Backend
    model: torch.nn.Module
    _last_image: tuple[str, Tensor] | None = None

    @classmethod
    def load(
        cls, config: ModelConfig, prompt: PromptConfig | None = None, device: torch.device | None = None
    ) -> Replica:
        """Load a model. Raises `ConfigError` where the configuration cannot be met."""
        device = device or default_device()
        folder = model_folder(config)
        model_config = read_model_config(folder)
        dtype = resolve_dtype(config.dtype, device)
        attention = choose_backend(config.attention, device, dtype)
        loaded = load_model(folder, dtype, device)
        tiler = Tiler.from_processor(loaded.image_processor, model_config.vision_config.patch_size)
        template = prompt.template if prompt else None
        stop = loaded.model.generation_config.eos_token_id
        return cls(
            decoder=Decoder.of(loaded.model.model.language_model, loaded.model.lm_head),
            vision=VisionEncoder(loaded.model.model, tiler, dtype),
            writer=PromptWriter(loaded.processor, model_config.image_token_id, template),
            tiler=tiler,
            image_token_id=model_config.image_token_id,
            stop_tokens=tuple(stop) if isinstance(stop, list) else () if stop is None else (stop,),
            device=device,
            dtype=dtype,
            attention=attention,
            model=loaded.model,
        )

    def preparer(self, max_pixels: int) -> SamplePreparer:
        """The CPU side that belongs to this model."""
        return SamplePreparer(self.tiler, self.writer, self.image_token_id, self.decoder.context, max_pixels)

    def prefill(
        self,
        samples: Sequence[PreparedSample],
        schedule: Schedule,
        selector: Selector,
        top_k: int = 1,
        on_host: bool = False,
        zipper: VisionZip | None = None,
    ) -> list[Prefix]:
        """Pruned prefixes of a batch, packed.

        Keys and values are views of the batch's tensors, on the device, or `on_host` copied there in one piece a
        segment.

        Args:
            samples: the batch.
            schedule: how many image tokens each sample keeps where.
            selector: which ones.
            top_k: entries wanted of the first token's distribution.
            on_host: where keys and values are wanted.
            zipper: does the schedule's first prune point, which must be 0, behind the vision tower.
        """
        budgets = [schedule.counts(sample.image_tokens) for sample in samples]
        reduced_to = [budget[0] for budget in budgets] if zipper else None
        hidden, rows = self.embed(samples, reduced_to, zipper)
        attention = packed_attention(self.attention)
        prefill = pruned_prefill(self.decoder, hidden, rows, schedule.prune_points, budgets, selector, attention)
        return split_prefixes(prefill.on_host() if on_host else prefill, top_k)

    @torch.no_grad()
    def embed(
        self,
        samples: Sequence[PreparedSample],
        reduced_to: Sequence[int] | None = None,
        zipper: VisionZip | None = None,
    ) -> tuple[Tensor, PackedRows]:
        """(T, d) packed input embeddings of whole prompts, image features in place, and their layout.

        With a `zipper`, sample s has only `reduced_to[s]` image tokens, and its rows' `image_index` says which.
        """
        if reduced_to is None or zipper is None:
            ids = [torch.tensor(sample.input_ids) for sample in samples]
            features = self._image_features(samples)
            tokens = [features[image.hash] for sample in samples for image in sample.images]
            index = None
        else:
            shares = [_share(count, sample.images) for count, sample in zip(reduced_to, samples, strict=True)]
            ids = [
                torch.tensor(self.writer.expand(sample.prompt_ids, share))
                for sample, share in zip(samples, shares, strict=True)
            ]
            tokens, index = self._reduced_features(samples, shares, zipper)
        rows = PackedRows.pack([run == self.image_token_id for run in ids], self.device)
        hidden = self.decoder.embed(torch.cat(ids).to(self.device, non_blocking=True))
        hidden[rows.image_rows] = torch.cat(tokens)
        return hidden, rows if index is None else rows.renumbered(index)

    def generate(self, prefixes: Sequence[Prefix], max_new_tokens: int) -> list[str]:
        """Greedy answers from prefixes of any lengths, as text."""
        answers = generate(self.decoder, prefixes, max_new_tokens, self.stop_tokens)
        return [self.writer.decode(answer) for answer in answers]

    def _image_features(self, samples: Sequence[PreparedSample]) -> dict[str, Tensor]:
        """Image tokens by image hash; each image passes the tower once, also one that the batch before ended with."""
        known = dict([self._last_image]) if self._last_image else {}
        wanted: dict[str, PreparedImage] = {
            image.hash: image for sample in samples for image in sample.images if image.hash not in known
        }
        if wanted:
            images = list(wanted.values())
            features = self.vision.encode(self._tiles(images))
            maps, tiles = [image.token_map for image in images], [len(image.tiles) for image in images]
            known.update(zip(wanted, self.vision.image_tokens(features.hidden, maps, tiles), strict=True))
        last = samples[-1].images[-1].hash
        self._last_image = (last, known[last])
        return known

    def _reduced_features(
        self, samples: Sequence[PreparedSample], shares: Sequence[Sequence[int]], zipper: VisionZip
    ) -> tuple[list[Tensor], Tensor]:
        """Each image's reduced tokens, and the numbers of all of them among their samples' original image tokens.

        Each image passes the tower once, however many samples ask about it.
        """
        images = {image.hash: image for sample in samples for image in sample.images}
        number = {digest: at for at, digest in enumerate(images)}
        features = self.vision.encode(self._tiles(list(images.values())), with_attention=True)
        maps, tiles = [i.token_map for i in images.values()], [len(i.tiles) for i in images.values()]
        keep = [
            (number[image.hash], count)
            for sample, share in zip(samples, shares, strict=True)
            for image, count in zip(sample.images, share, strict=True)
        ]
        reduced = self.vision.reduced_tokens(features, maps, tiles, keep, zipper)
        first = [
            sum(image.tokens for image in sample.images[:n]) for sample in samples for n in range(len(sample.images))
        ]
        index = torch.cat([numbers + start for (_, numbers), start in zip(reduced, first, strict=True)])
        return [tokens for tokens, _ in reduced], index

    def _tiles(self, images: Sequence[PreparedImage]) -> Tensor:
        return torch.cat([image.tiles for image in images]).to(self.device, non_blocking=True)


def _share(count: int, images: Sequence[PreparedImage]) -> list[int]:
    """Split a sample's budget over its images by their tokens."""
    total, given, shares = sum(image.tokens for image in images), 0, []
    tokens = 0
    for image in images:
        tokens += image.tokens
        shares.append(count * tokens // total - given)
        given += shares[-1]
    return shares


def make_schedule(config: MethodConfig, layers: int) -> Schedule:
    """The schedule that a configuration means for a decoder of `layers` layers.

    Raises:
        ConfigError: a prune point beyond the last layer, or a retention that the prune points cannot meet.
    """
    retention = config.retention
    if retention is None and config.tokens is None and config.keep is None:
        retention = DEFAULT_RETENTION
    points = config.prune_points or _default_points(config, layers, retention)
    if points[-1] >= layers:
        raise ConfigError("method.prune_points", f"{points[-1]} is beyond the model's last layer, {layers - 1}")
    weights = config.weights or _default_weights(config, len(points))
    if config.keep is None and len(weights) != len(points):
        message = f"{len(points)} prune points need as many weights; there are defaults for {len(weights)}"
        raise ConfigError("method.weights", message)
    try:
        return Schedule(layers, points, retention, config.tokens, config.keep, weights)
    except ValueError as error:
        raise ConfigError("method.retention", str(error)) from None


def _default_points(config: MethodConfig, layers: int, retention: float | None) -> tuple[int, ...]:
    if config.encoder:
        return 0, layers // 2
    return plus_prune_points(layers) if config.selector == "trio-plus" else default_prune_points(layers, retention)


def _default_weights(config: MethodConfig, points: int) -> tuple[float, ...]:
    if config.encoder:
        return AUTHORS_ENCODER_KEEP[-points:]
    return PLUS_KEEP[:points] if config.selector == "trio-plus" else AUTHORS_KEEP[-points:]


def make_selector(config: MethodConfig) -> Selector:
    """The selector that a configuration means."""
    return selector_named(config.selector, config.threshold, config.supervised_rows, config.positions)


def make_zipper(config: MethodConfig) -> VisionZip | None:
    """The encoder-side reduction that a configuration means, if any."""
    return VisionZip() if config.encoder == "visionzip" else None
