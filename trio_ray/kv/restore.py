"""From stored bytes to keys and values on a device.

On a GPU the stored bytes of many samples are copied at once, and decompressed and restored there, straight into the
rows that decoding reads. On a CPU the same is done tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.codecs.codec import Codec, SegmentToRestore, of_segment
from trio_ray.kv.comparison import Compared, compare_on_device, compare_on_host
from trio_ray.kv.container import (
    CHECKSUM_DIFFERS,
    CheckedContainer,
    Kind,
    Stored,
    check_containers,
    decompress_tensor,
)
from trio_ray.kv.header import ContainerError
from trio_ray.kv.lossless.on_device import restore_tensors
from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.kv.staging import stage
from trio_ray.kv.target import Allocate, RowTarget, fresh_targets
from trio_ray.tensors import has_triton, move_joined, move_together, to_host

DAMAGED = "not as written: a tensor is no zstd frame of Huffman codes, cut as the codec's layout says"


def read_container(
    data: Stored,
    codec: Codec,
    *,
    key: str | None = None,
    fingerprint: str | None = None,
    device: torch.device | str = "cpu",
) -> Prefix:
    """Bytes to a prefix.

    Args:
        data: the whole container, its checksum already compared by the caller that knows it.
        codec: the cache's.
        key: the key that must be in the header, if given.
        fingerprint: the identity hash that must be in the header, if given.
        device: where keys and values are restored; the small tensors stay on the CPU.

    Raises:
        FingerprintMismatch: made under another identity or with another codec; names the field.
        ContainerError: anything else that is not as written.
    """
    (prefix,) = read_containers([(key, data)], codec, fingerprint=fingerprint, device=device)
    if isinstance(prefix, ContainerError):
        raise prefix
    return prefix


def read_containers(
    items: Sequence[tuple[str | None, Stored]],
    codec: Codec,
    *,
    fingerprint: str | None = None,
    device: torch.device | str = "cpu",
    allocate: Allocate | None = None,
) -> list[Prefix | ContainerError]:
    """`check_containers` and then `restore_containers` for the bytes of many samples.

    Args:
        items: of each sample the key that must be in its header, if any, and its bytes.
        codec, fingerprint: see `check_containers`.
        device, allocate: see `restore_containers`.

    Returns:
        For each sample its prefix, or the error that `read_container` raises for it.
    """
    checked = check_containers(items, codec, fingerprint)
    sound = [container for container in checked if isinstance(container, CheckedContainer)]
    restored = iter(restore_containers(sound, codec, device, allocate))
    return [next(restored) if isinstance(outcome, CheckedContainer) else outcome for outcome in checked]


def restore_containers(
    checked: Sequence[CheckedContainer],
    codec: Codec,
    device: torch.device | str = "cpu",
    allocate: Allocate | None = None,
) -> list[Prefix | ContainerError]:
    """`start_restore`, and wait for it."""
    return start_restore(checked, codec, device, allocate).finish()


def start_restore(
    checked: Sequence[CheckedContainer],
    codec: Codec,
    device: torch.device | str = "cpu",
    allocate: Allocate | None = None,
    checksums: Sequence[str | None] | None = None,
) -> RestoreUnderWay:
    """Restore many samples together: on a GPU by a few copies and kernels for all of them, which nothing waits for.

    The stored bytes travel on a stream of their own, so that those of one call arrive while an earlier one's are
    decompressed.

    Args:
        checked: what `check_containers` returned.
        codec: the cache's.
        device: where keys and values are restored; the small tensors of a prefix stay on the CPU.
        allocate: says where keys and values go; called once. None makes new packed tensors.
        checksums: of the samples' bytes, where they have yet to be compared: on a GPU by a kernel, beside the others.

    Raises:
        What `allocate` raises, before anything is done.
    """
    device = torch.device(device)
    alike: dict[Kind, list[int]] = {}
    for number, sample in enumerate(checked):
        alike.setdefault(sample.kind, []).append(number)
    kinds = [[checked[number] for number in numbers] for numbers in alike.values()]
    targets = (allocate or fresh_targets(device))([[sample.shapes for sample in samples] for samples in kinds])
    begun = [
        _start(samples, [checksums[number] if checksums else None for number in numbers], codec, device, own)
        for samples, numbers, own in zip(kinds, alike.values(), targets, strict=True)
    ]
    done = None
    if device.type == "cuda":
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(device))
    order = [number for numbers in alike.values() for number in numbers]
    return RestoreUnderWay(begun, order, done)


class RestoreUnderWay:
    """Samples that a device is restoring."""

    def __init__(self, kinds: Sequence[_KindUnderWay], order: Sequence[int], done: torch.cuda.Event | None) -> None:
        self._kinds, self._order, self._done = kinds, order, done

    def is_done(self) -> bool:
        """Whether the device has finished."""
        return self._done is None or self._done.query()

    def finish(self) -> list[Prefix | ContainerError]:
        """Wait, and return for each sample its prefix, or the error that only restoring it could find.

        Keys and values are views of the targets' tensors, which stay in memory as long as one of the prefixes is in
        use.
        """
        if self._done is not None:
            self._done.synchronize()  # the only time that the CPU waits for the GPU
        outcomes = dict(zip(self._order, (one for kind in self._kinds for one in kind.prefixes()), strict=True))
        return [outcomes[number] for number in range(len(outcomes))]


@dataclass(frozen=True)
class _KindUnderWay:
    """Samples of one kind.

    Attributes:
        samples: they.
        split: by segment those of the samples.
        faults: what is wrong with each sample, as far as the CPU has found it; empty for nothing.
        damaged: (B,) int32 in host memory once the device is done: not 0 where it has found something; None where
            it looks for nothing.
        compared: the same for checksums.
    """

    samples: Sequence[CheckedContainer]
    split: Sequence[Sequence[Segment]]
    faults: Sequence[str]
    damaged: Tensor | None
    compared: Compared | None

    def prefixes(self) -> list[Prefix | ContainerError]:
        found = [0] * len(self.samples) if self.damaged is None else self.damaged.tolist()
        faults = [fault or (DAMAGED if bad else "") for fault, bad in zip(self.faults, found, strict=True)]
        if self.compared is not None:
            differ = self.compared.differing()
            faults = [CHECKSUM_DIFFERS if bad else fault for fault, bad in zip(faults, differ, strict=True)]
        return [
            ContainerError(fault) if fault else sample.prefix(own)
            for sample, own, fault in zip(self.samples, zip(*self.split, strict=True), faults, strict=True)
        ]


def _start(
    samples: Sequence[CheckedContainer],
    checksums: Sequence[str | None],
    codec: Codec,
    device: torch.device,
    targets: Sequence[RowTarget],
) -> _KindUnderWay:
    """Begin to restore samples of one kind."""
    if not has_triton(device):
        tensors, faults = decompress_on_host(samples, device)
        compared = compare_on_host(samples, checksums)
        return _KindUnderWay(samples, inverse(samples, codec, tensors, targets), faults, None, compared)
    staged = stage(samples, device)
    compared = compare_on_device(staged, samples, checksums) or compare_on_host(samples, checksums)
    tensors, damaged = restore_tensors(staged.source, staged.tensors)
    split = inverse(samples, codec, tensors, targets)
    return _KindUnderWay(samples, split, staged.faults, to_host(damaged), compared)


def decompress_on_host(
    samples: Sequence[CheckedContainer], device: torch.device
) -> tuple[dict[str, Tensor], list[str]]:
    """Decompress the codec's tensors of samples of one kind on the CPU.

    Returns:
        By `<segment>.<name>` the tensors of all samples, on `device`; and what is wrong with each sample, empty for
        nothing.
    """
    faults = ["" for _ in samples]
    layout = samples[0].layout

    def tensor(number: int, sample: int) -> Tensor:
        try:
            return decompress_tensor(samples[sample], number)
        except ValueError as error:
            spec = samples[sample].layout.specs[number]
            faults[sample] = faults[sample] or f"not as written: tensor '{layout.names[number]}': {error}"
            return torch.zeros(spec.shape, dtype=spec.dtype)

    runs = [[tensor(number, sample) for sample in range(len(samples))] for number in range(len(layout.names))]
    return dict(zip(layout.names, move_joined(runs, device), strict=True)), faults


def inverse(
    samples: Sequence[CheckedContainer], codec: Codec, tensors: Mapping[str, Tensor], targets: Sequence[RowTarget]
) -> list[list[Segment]]:
    """Write the keys and values of samples of one kind into targets, segment by segment, without waiting for a GPU.

    Args:
        samples: of which all but keys and values is known.
        codec: the cache's.
        tensors: by `<segment>.<name>` its tensors, on the targets' device.
        targets: of the segments.

    Returns:
        By segment those of the samples, as views of the targets.
    """
    shapes = [[sample.shapes[number] for sample in samples] for number in range(len(targets))]
    rows = [shape.rows for own in shapes for shape in own]
    position, text = _by_segment(samples, rows)
    ends = [0, *accumulate(sum(shape.rows for shape in own) for own in shapes)]
    segments = [
        SegmentToRestore(of_segment(number, tensors), own, position[start:end], text[start:end], target)
        for number, (own, target, start, end) in enumerate(zip(shapes, targets, ends[:-1], ends[1:], strict=True))
    ]
    codec.restore(segments)
    moved = move_together([torch.from_numpy(position), torch.from_numpy(text)], targets[0].device)
    parts = list(zip(*(tensor.split(rows) for tensor in moved), strict=True))
    return [
        _split(segment.target, segment.shapes, parts[number * len(samples) : (number + 1) * len(samples)])
        for number, segment in enumerate(segments)
    ]


def _by_segment(
    samples: Sequence[CheckedContainer], rows: Sequence[int]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Positions and texts of all samples by segment and then by sample; `rows` are so many."""
    begins = [0] * len(samples)
    positions, texts = [], []
    for number, count in enumerate(rows):
        sample = number % len(samples)
        begin = begins[sample]
        begins[sample] = end = begin + count
        positions.append(samples[sample].fields.position[begin:end])
        texts.append(samples[sample].fields.text[begin:end])
    return np.concatenate(positions), np.concatenate(texts)


def _split(target: RowTarget, shapes: Sequence[SegmentShape], parts: Sequence[tuple[Tensor, Tensor]]) -> list[Segment]:
    """The samples' segments, as views of a target; `parts` are position and text of each."""
    rows = [shape.rows for shape in shapes]
    keys, values = (_runs(states, target.starts, rows) for states in (target.keys, target.values))
    return [
        Segment(shape.first_layer, key, value, *part)
        for shape, key, value, part in zip(shapes, keys, values, parts, strict=True)
    ]


def _runs(states: Tensor, starts: Sequence[int], rows: Sequence[int]) -> Sequence[Tensor]:
    """Runs of rows, the second dimension. Where they follow each other, one call cuts them all."""
    ends = [start + count for start, count in zip(starts, rows, strict=True)]
    if starts and list(starts[1:]) == ends[:-1]:
        return states[:, starts[0] : ends[-1]].split(rows, 1)
    return [states.narrow(1, start, count) for start, count in zip(starts, rows, strict=True)]
