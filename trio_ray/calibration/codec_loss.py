"""What a codec costs: the same states stored and loaded, and what the model then predicts from them.

The first answer token comes out of the prefill, before anything is coded, so it says nothing about a codec. Here the
prompt's last rows are decoded again over the rows that were stored, and everything is compared with what the same
16-bit states give that never left memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.container import write_container
from trio_ray.kv.encode import code_batch, new_memory
from trio_ray.kv.header import ContainerError
from trio_ray.kv.prefix import Prefix
from trio_ray.kv.restore import read_containers
from trio_ray.model.continuation import Continuation
from trio_ray.model.decode.engine import generate
from trio_ray.model.decoder import Decoder

IN_MEMORY = "16 bit, never stored"
UNROUNDED = "float32, never stored"
"""Names of the controls: the states that all codecs are compared with, and what rounding to 16 bit does by itself."""

FINGERPRINT = "0" * 32
"""Stands for the fingerprint of a cache: the containers of a measurement belong to none."""


@dataclass(frozen=True)
class Trial:
    """A codec, and the name that it has in the tables."""

    name: str
    codec: Codec


@dataclass(frozen=True)
class Loaded:
    """Prefixes that were stored and loaded, and the bytes of each one's container."""

    prefixes: list[Prefix]
    sizes: list[int]


@dataclass(frozen=True)
class Agreement:
    """Predictions from coded states, compared with those from the same states in 16 bit. There is one number for each
    predicted token.

    Attributes:
        kl: divergence of the coded from the 16-bit distribution, nats.
        same: whether the most likely token is the same.
    """

    kl: tuple[float, ...]
    same: tuple[bool, ...]


def in_16_bit(batch: PrefixBatch) -> PrefixBatch:
    """The states that a prefill on a GPU would leave: those of a float32 model, rounded to bfloat16."""
    if batch.segments[0].keys.dtype != torch.float32:
        return batch
    segments = [
        replace(segment, keys=segment.keys.bfloat16(), values=segment.values.bfloat16()) for segment in batch.segments
    ]
    return replace(batch, segments=tuple(segments))


def containers_of(batch: PrefixBatch, codec: Codec) -> list[tuple[str, bytes]]:
    """Compress a batch and write each sample's container; returns keys and bytes."""
    coded = code_batch(batch, codec).on_host(new_memory)
    return [
        (str(number), bytes(write_container(sample, codec.settings, key=str(number), fingerprint=FINGERPRINT)))
        for number, sample in enumerate(coded.split())
    ]


def store_and_load(batch: PrefixBatch, codec: Codec) -> Loaded:
    """Store a batch in containers, and read it back as a later process would."""
    containers = containers_of(batch, codec)
    device = batch.segments[0].keys.device
    prefixes = []
    for outcome in read_containers(containers, codec, fingerprint=FINGERPRINT, device=device):
        if isinstance(outcome, ContainerError):
            raise outcome
        prefixes.append(outcome)
    return Loaded(prefixes, [len(data) for _, data in containers])


def unstored(batch: PrefixBatch) -> Loaded:
    """A batch that stays in memory."""
    prefixes = batch.split()
    return Loaded(prefixes, [prefix.kv_bytes for prefix in prefixes])


def without_last_rows(prefix: Prefix, count: int) -> Prefix:
    """The prefix without its last `count` rows. They must be text rows, which every layer holds."""
    segments = [
        replace(
            segment,
            keys=segment.keys[:, : segment.rows - count],
            values=segment.values[:, : segment.rows - count],
            position=segment.position[: segment.rows - count],
            text=segment.text[: segment.rows - count],
        )
        for segment in prefix.segments
    ]
    length = prefix.length - count
    return replace(prefix, length=length, lead=min(prefix.lead, length), segments=tuple(segments))


def values_of(prefix: Prefix) -> int:
    """How many numbers a prefix's keys and values hold."""
    return sum(segment.keys.numel() + segment.values.numel() for segment in prefix.segments)


def predict(
    decoder: Decoder,
    prefixes: Sequence[Prefix],
    recomputed: Sequence[Sequence[int]],
    following: Sequence[Sequence[int]],
) -> list[Tensor]:
    """Predictions of the tokens behind each prompt, teacher-forced.

    Args:
        decoder: the model.
        prefixes: B of them.
        recomputed: of each prompt the last tokens, at least one; their rows are cut off and decoded again.
        following: of each the tokens behind the prompt, at least one.

    Returns:
        Of each (following tokens, vocabulary) fp32 log-probabilities.
    """
    tokens = [[*tail, *after[:-1]] for tail, after in zip(recomputed, following, strict=True)]
    logits = Continuation(decoder, _earlier(prefixes, recomputed), room=max(map(len, tokens))).score(tokens)
    return [rows[len(tail) - 1 :].log_softmax(-1) for rows, tail in zip(logits, recomputed, strict=True)]


def greedy(
    decoder: Decoder,
    prefixes: Sequence[Prefix],
    recomputed: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_tokens: Sequence[int],
) -> list[list[int]]:
    """Greedy answers. The first token, too, is predicted from the stored rows; see `predict` for `recomputed`."""
    return generate(decoder, _earlier(prefixes, recomputed), max_new_tokens, stop_tokens, recomputed)


def agreement(reference: Tensor, coded: Tensor) -> Agreement:
    """Compare (tokens, vocabulary) log-probabilities from 16-bit states with those from coded ones."""
    kl = (reference.exp() * (reference - coded)).sum(-1)
    return Agreement(tuple(kl.tolist()), tuple((reference.argmax(-1) == coded.argmax(-1)).tolist()))


def _earlier(prefixes: Sequence[Prefix], recomputed: Sequence[Sequence[int]]) -> list[Prefix]:
    return [without_last_rows(prefix, len(tail)) for prefix, tail in zip(prefixes, recomputed, strict=True)]
