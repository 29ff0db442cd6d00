"""The Ray actor: one replica, which is given one shard after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from trio_ray.cache.identity import codec_of, method_of
from trio_ray.cluster.actors import PooledActor, WantsMore, place_of_this_actor
from trio_ray.cluster.host_share import cpus_to_count_on
from trio_ray.config import JobConfig
from trio_ray.model.decoder import default_device
from trio_ray.model.replica import Replica
from trio_ray.precompute.auto_budget import suit_budget
from trio_ray.precompute.host_memory import HostMemory
from trio_ray.precompute.metrics import ReplicaMetrics
from trio_ray.precompute.model_stage import ModelStage
from trio_ray.precompute.outlook import ShardAdvanced
from trio_ray.precompute.plan import Task
from trio_ray.precompute.shard_run import SHARDS_AT_ONCE, InputRead, ShardRunner
from trio_ray.precompute.shard_writer import PartReport, ShardWriter, StoringSpec
from trio_ray.precompute.storing import StoringProcesses
from trio_ray.store.dataset import Dataset
from trio_ray.store.inputs import StoreOpener
from trio_ray.store.opening import open_store


@dataclass(frozen=True)
class ReplicaSpec:
    """What an actor needs to become a replica; small, and free of credentials."""

    config: JobConfig
    dataset: Dataset
    run_id: str


class ReplicaActor(PooledActor[Task]):
    """Hosts a LLaVA-NeXT replica. Pixels and KV never leave it by Ray: only shards come in and small reports go out."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self._spec = spec

    def load(self) -> str:
        """Load the model, and start the processes that store its results. See `PooledActor`."""
        started, spec = time.monotonic(), self._spec
        torch.set_num_threads(spec.config.replicas.torch_threads)
        config = spec.config
        store = open_store(config.output, config.s3)
        method = method_of(spec.dataset.identity)
        method.require_selector()
        codec = codec_of(spec.dataset.identity, store)
        cpus = cpus_to_count_on(config.replicas)
        storing = StoringSpec.of(config, spec.dataset, codec, spec.run_id, cpus, place_of_this_actor())
        on_gpu, where = default_device().type == "cuda", config.pipeline.storing
        # On a CPU the model leaves nothing idle that another process could use.
        apart = on_gpu if where == "auto" else where == "process"
        memory = HostMemory(pinned=on_gpu) if apart else None
        processes = StoringProcesses(storing, memory, SHARDS_AT_ONCE) if memory else None
        try:
            replica = Replica.load(config.model, config.prompt)
        except BaseException:
            if processes is not None:
                processes.close()  # the actor may live on for a while
            raise
        self._runner = ShardRunner(
            stage=ModelStage(
                replica=replica,
                method=method,
                codec=codec,
                cache=config.cache,
                token_budget=config.pipeline.batch_rows,
                memory=memory,
            ),
            config=config,
            store=store,
            dataset=spec.dataset,
            opener=StoreOpener(config.s3),
            decode_threads=config.pipeline.decoders(cpus),
            open_sink=processes.open if processes else partial(ShardWriter, storing, store),
        )
        self._finds_budget = config.pipeline.token_budget == "auto"
        self._metrics = ReplicaMetrics(config.output, time.monotonic() - started)
        return f"{replica.device} {str(replica.dtype).removeprefix('torch.')} {replica.attention}"

    def run(self, work: Task) -> Iterator[PartReport | ShardAdvanced | WantsMore]:
        """Process a shard. A report comes as each part is done, and about once a second one of how far it is; a
        `WantsMore` comes when all of its input is read: the next shard can fill the device while this one is still
        being stored.
        """
        if self._finds_budget:
            suit_budget(self._runner.stage, self._runner.config, work.shard, self._runner.opener)
            self._finds_budget = False
        started = time.monotonic()
        # Not `yield from`: Ray resumes the generator with `send`, which must not reach the iterators inside.
        for report in self._runner.run(work.shard, work.committed, work.limit):
            if isinstance(report, PartReport):
                self._metrics.part_done(time.monotonic() - started)
                started = time.monotonic()
            yield WantsMore() if isinstance(report, InputRead) else report
