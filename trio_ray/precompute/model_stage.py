"""The device's share of the work: prefill, code, copy to the host. Nothing here waits for the device, but for what
`FrameMaker` counts now and then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from trio_ray.config import CacheConfig
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.encode import code_batch, frame_of
from trio_ray.kv.lossless.frames import FrameMaker, frame_maker
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.suppression import Speculation
from trio_ray.model.packing import pack
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.model.targets import answer_targets
from trio_ray.precompute.host_batch import HostGroup
from trio_ray.precompute.host_memory import ALIGNMENT, HostMemory, Lease, aligned
from trio_ray.precompute.rows import good_sample
from trio_ray.precompute.stored_batch import StoredBatch, StoredSample
from trio_ray.source.sample import BadSample, Reason
from trio_ray.tensors import Mark, in_fitting_parts, mark, milliseconds_between


@dataclass(frozen=True)
class StoredGroup:
    """A batch on its way to the host, when the device began and ended with it, and when it is copied.

    Attributes:
        samples: the batch is of, in its order.
        batch: in host memory once `copied` has come.
        started, ended: marks of time.
        copied: when all is in host memory.
        converged: () bool beside the batch: whether suppression has converged (`Speculation`).
        recompute: prefills the batch again where it has not.
        lease: of the host memory that the batch is copied to.
    """

    samples: Sequence[PreparedSample]
    batch: StoredBatch
    started: Mark
    ended: Mark
    copied: torch.cuda.Event | None = None
    converged: Tensor | None = None
    recompute: Callable[[], list[StoredGroup | BadSample]] | None = None
    lease: Lease | None = None

    def arrived(self) -> list[StoredGroup | BadSample]:
        """Waits until the batch is in host memory, and returns it.

        Where suppression had not converged it is recomputed. Those are other groups: one, or several where the device's
        memory is too small by now, and a `BadSample` for one that does not fit even alone.
        """
        if self.copied is not None:
            self.copied.synchronize()
        if self.converged is None or self.recompute is None or self.converged:
            return [self]
        self.release()
        recomputed = self.recompute()
        return [arrived for one in recomputed for arrived in (one.arrived() if isinstance(one, StoredGroup) else [one])]

    def stored(self) -> list[StoredSample]:
        """What is stored of each sample in host memory, as soon as it is there."""
        groups = [one for one in self.arrived() if isinstance(one, StoredGroup)]
        return [sample for group in groups for sample in group.batch.split()]

    def release(self) -> None:
        """Nobody needs the batch any more."""
        if self.lease is not None:
            self.lease.release()

    def on_host(self, schedule: Schedule) -> HostGroup:
        """The batch for those that know neither GPU nor pixels; ask when it has arrived."""
        samples = [good_sample(sample, schedule) for sample in self.samples]
        return HostGroup(samples, self.batch, self.milliseconds, self.lease.block if self.lease else None)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of each sample's prompt, as far as it is stored."""
        return self.batch.coded.lengths

    @property
    def milliseconds(self) -> float:
        """What the device needed for them; ask when they are there."""
        return milliseconds_between(self.started, self.ended)


@dataclass
class ModelStage:
    """A replica's model with its settings, used by one thread at a time.

    Between the prune points of a batch the host does not ask the device whether suppression has converged
    (`Speculation`). It goes on, and finds out when the results arrive. A batch that has not converged is recomputed
    exactly, and the batches after it look at more candidates.

    Attributes:
        replica: the loaded model.
        method: which image tokens a prefix keeps.
        codec: how keys and values are stored; None where they are not.
        cache: what is stored of a sample.
        token_budget: most rows of a batch of several samples. It is halved whenever the device runs out of memory.
        memory: where results are copied to; None leaves those of the CPU where they are. A GPU needs one.
    """

    replica: Replica
    method: Method
    codec: Codec | None
    cache: CacheConfig
    token_budget: int
    memory: HostMemory | None = None
    _speculation: Speculation = field(default_factory=Speculation)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _copies: torch.cuda.Stream | None = None
    _frames: FrameMaker | None = None

    def __post_init__(self) -> None:
        if self.replica.device.type == "cuda":
            self._copies = torch.cuda.Stream(self.replica.device)
            self.memory = self.memory or HostMemory(pinned=True)
        if self.codec is not None:
            self._frames = frame_maker(self.codec.settings, self.replica.device)

    def run(self, samples: Sequence[PreparedSample]) -> list[StoredGroup | BadSample]:
        """What is stored of the samples, in order: one group, or several where the device's memory is too small.

        A `BadSample` stands for one that does not fit even alone.
        """
        with self._lock:
            # A budget that was halved since these samples were packed holds for them, too.
            batches = pack(samples, self.token_budget)
            return [group for fitting in batches for group in self._in_fitting_groups(fitting, self._group)]

    def _in_fitting_groups(
        self, samples: Sequence[PreparedSample], group_of: Callable[[Sequence[PreparedSample]], StoredGroup]
    ) -> list[StoredGroup | BadSample]:
        parts = in_fitting_parts(self.replica.device, samples, group_of, self._halve_budget)
        return [_too_large(part[0]) if group is None else group for part, group in parts]

    def _halve_budget(self) -> None:
        self.token_budget = max(1, self.token_budget // 2)

    def _group(self, samples: Sequence[PreparedSample]) -> StoredGroup:
        speculation = replace(self._speculation, pending=[])
        started = mark(self.replica.device)
        stored = self._stored(samples, speculation)
        converged = torch.stack(speculation.pending).all() if speculation.pending else None
        return self._copied(samples, stored, started, converged, partial(self._recompute, samples))

    def _recompute(self, samples: Sequence[PreparedSample]) -> list[StoredGroup | BadSample]:
        """A batch that had not converged, without speculation. The batches after it are in the device's memory now."""
        with self._lock:
            self._speculation = Speculation(2 * self._speculation.window)
            return self._in_fitting_groups(samples, self._exact_group)

    def _exact_group(self, samples: Sequence[PreparedSample]) -> StoredGroup:
        started = mark(self.replica.device)
        return self._copied(samples, self._stored(samples), started)

    def _copied(
        self,
        samples: Sequence[PreparedSample],
        stored: StoredBatch,
        started: Mark,
        converged: Tensor | None = None,
        recompute: Callable[[], list[StoredGroup | BadSample]] | None = None,
    ) -> StoredGroup:
        ended = mark(self.replica.device)
        if self.memory is None:
            return StoredGroup(samples, stored, started, ended, None, converged, recompute)
        lease = self.memory.lease(sum(aligned(t.numel() * t.element_size()) for t in stored.tensors()) + ALIGNMENT)
        if self._copies is None:
            return StoredGroup(
                samples, stored.on_host(lease.allocate), started, ended, None, converged, recompute, lease
            )
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(cast(torch.cuda.Event, ended))
            on_host = stored.on_host(lease.allocate)
            if converged is not None:
                converged.record_stream(self._copies)
                converged = lease.allocate((), torch.bool).copy_(converged, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        for tensor in stored.tensors():
            tensor.record_stream(self._copies)  # or its memory would be given away while it is still being copied
        return StoredGroup(samples, on_host, started, ended, copied, converged, recompute, lease)

    def _stored(self, samples: Sequence[PreparedSample], speculation: Speculation | None = None) -> StoredBatch:
        cache, replica = self.cache, self.replica
        prefilled = replica.prefill(samples, self.method, scope=cache.scope, top_k=cache.top_k, speculation=speculation)
        batch, targets = prefilled.batch, None
        embeds = prefilled.embeds if cache.level == "embeds" else None
        del prefilled  # what is not stored of it would take the memory that coding needs
        if cache.targets == "top_k":
            answers = [sample.answer_tokens for sample in samples]
            targets = answer_targets(replica.decoder, batch, answers, cache.top_k)
        coded = frame_of(batch) if self.codec is None else code_batch(batch, self.codec, self._frames)
        return StoredBatch(coded, batch.finite(), embeds, targets)


def _too_large(sample: PreparedSample) -> BadSample:
    detail = f"{sample.rows} rows do not fit into the device's memory"
    return BadSample(sample.key, sample.index, Reason.OUT_OF_MEMORY, detail)
