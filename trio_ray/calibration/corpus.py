"""Samples for a calibration, drawn evenly from a job's shards, and the prefixes that the job would make of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from trio_ray.config import JobConfig
from trio_ray.errors import ConfigError, StoreError
from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.model.packing import pack
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import Opener, Shard
from trio_ray.source.shards import evenly, split_file
from trio_ray.store.inputs import InputFile, StoreOpener, expand_inputs
from trio_ray.tensors import in_fitting_parts

STRIDE = 8
"""The distance between the samples that are drawn first from a shard; those between them follow. Neighbours are often
questions about the same image.
"""


@dataclass(frozen=True)
class DrawnPrefix:
    """A sample's prefix in host memory, without its prompt's last row.

    Attributes:
        prefix: that.
        last_token: of the row that is cut off.
        about: hashes of the sample's images.
    """

    prefix: Prefix
    last_token: int
    about: frozenset[str] = frozenset()


def draw_samples(config: JobConfig, replica: Replica, count: int) -> list[PreparedSample]:
    """Up to `count` samples that the job would store, in equal numbers from each shard where that is possible.

    What cannot be read is passed over, as the job itself will say of it what is wrong.

    Raises:
        ConfigError: no input.
    """
    if not config.input:
        raise ConfigError("input", "names no shards; give paths or s3:// URIs")
    opener = StoreOpener(config.s3)
    files = evenly([file for file in expand_inputs(config.input, config.s3) if file.readable], count)
    shards = [shard for file in files for shard in _shards_of(file, config, opener)]
    # Round after round over the shards, so that both ends of the list come from all of them.
    open_ones = [_draw(shard, config, replica, opener) for shard in evenly(shards, count)]
    samples: list[PreparedSample] = []
    while open_ones and len(samples) < count:
        drawn = [(source, next(source, None)) for source in open_ones]
        open_ones = [source for source, sample in drawn if sample is not None]
        samples += [sample for _, sample in drawn if sample is not None]
    return samples[:count]


def prefixes_of(
    samples: Sequence[PreparedSample],
    config: JobConfig,
    replica: Replica,
    on_sample: Callable[[], None] = lambda: None,
) -> Iterator[DrawnPrefix]:
    """The samples' pruned prefixes, in order. A sample that does not fit into the device's memory even alone is left
    out.

    `on_sample` is called behind each.
    """
    method = config.method.build(replica.decoder.depth)

    def prefill(batch: Sequence[PreparedSample]) -> list[Prefix]:
        return replica.prefill(batch, method).prefixes

    for batch in pack(samples, config.pipeline.batch_rows):
        for fitting, prefixes in in_fitting_parts(replica.device, batch, prefill):
            for sample, prefix in zip(fitting, prefixes or (), strict=prefixes is not None):
                images = frozenset(image.hash for image in sample.images)
                yield DrawnPrefix(_on_host(prefix), sample.input_ids[-1], images)
                on_sample()


def _shards_of(file: InputFile, config: JobConfig, opener: Opener) -> list[Shard]:
    try:
        return split_file(file.uri, file.size, file.etag, config.source, opener)
    except StoreError:
        return []


def _draw(shard: Shard, config: JobConfig, replica: Replica, opener: Opener) -> Iterator[PreparedSample]:
    schedule = config.method.build(replica.decoder.depth).schedule
    preparer = replica.preparer(config.source.max_pixels, config.cache.selected_under, schedule=schedule)
    with contextlib.suppress(StoreError):
        for first in range(STRIDE):

            def skip(index: int, first: int = first) -> bool:
                return index % STRIDE != first

            yield from preparer.good(read_shard(shard, config.source, opener, skip))


def _on_host(prefix: Prefix) -> Prefix:
    """The prefix in host memory without its last row. That is a text row, which every segment holds."""

    def move(tensor: torch.Tensor, rows: int) -> torch.Tensor:
        return tensor.narrow(-3 if tensor.dim() == 4 else 0, 0, rows).cpu().clone()

    segments = tuple(
        Segment(
            s.first_layer,
            move(s.keys, s.rows - 1),
            move(s.values, s.rows - 1),
            move(s.position, s.rows - 1),
            move(s.text, s.rows - 1),
        )
        for s in prefix.segments
    )
    return Prefix(
        prefix.length - 1,
        min(prefix.lead, prefix.length - 1),
        segments,
        tuple(kept.cpu() for kept in prefix.kept),
        prefix.top_ids.cpu(),
        prefix.top_logprobs.cpu(),
    )
