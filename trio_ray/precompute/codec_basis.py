"""The calibrated basis that a job names: read once, checked against the job, and from then on the cache's own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from trio_ray.config import JobConfig, codec_spec
from trio_ray.errors import ConfigError, StoreError
from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.codecs.codec import Codec, CodecError
from trio_ray.kv.codecs.registry import make_codec, parse_spec
from trio_ray.kv.codecs.transform import Transform, TransformSpec
from trio_ray.kv.codecs.transform_basis import read_basis
from trio_ray.kv.container import checksum
from trio_ray.method.schedule import Schedule
from trio_ray.model.loading import model_fingerprint
from trio_ray.store.dataset import first_difference
from trio_ray.store.inputs import StoreOpener

FIELD = "cache.codec.basis"


@dataclass(frozen=True)
class NamedCodec:
    """The codec that a job's settings name.

    Attributes:
        codec: with its basis by its hash, as identity and headers hold it.
        basis: the file's bytes, if it has one.
    """

    codec: Codec
    basis: bytes | None = None


def named_codec(config: JobConfig, folder: Path, schedule: Schedule, text: Any) -> NamedCodec | None:
    """The codec that a job's settings name; None where they name none.

    Args:
        config: the job; a codec names its basis by path or `s3://` URI.
        folder: the model's folder.
        schedule: where the job prunes.
        text: the model's text configuration.

    Raises:
        ConfigError: the basis cannot be read, is damaged, or was calibrated with another model or other prune points.
    """
    if not config.cache.names_codec:
        return None
    settings = parse_spec(codec_spec(config.cache))
    if not isinstance(settings, TransformSpec):
        return NamedCodec(make_codec(codec_spec(config.cache)))
    try:
        data = StoreOpener(config.s3).read(settings.basis)
        basis = read_basis(data)
        codec = Transform(settings.model_copy(update={"basis": checksum(data)}), basis)
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        edges = sorted({0, *schedule.prune_points, schedule.layers})
        for start, stop in pairwise(edges):
            shape = SegmentShape(start, stop - start, 1, 0, 1, text.num_key_value_heads, head_dim, torch.bfloat16)
            codec.layout(shape)
    except (StoreError, CodecError) as error:
        raise ConfigError(FIELD, str(error)) from None
    difference = first_difference(basis.model, model_fingerprint(folder), "model")
    if difference is not None:
        field, made, wanted = difference
        message = f"calibrated with {field} = {made!r}, the job has {wanted!r}; run `trio-ray calibrate` for this model"
        raise ConfigError(FIELD, message)
    return NamedCodec(codec, data)
