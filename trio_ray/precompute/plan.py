"""Everything that can be known, and everything that can be refused, before a model is loaded."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from trio_ray.cache.identity import build_identity, method_of
from trio_ray.cluster.replica_memory import replica_memory
from trio_ray.cluster.session import cluster_given, gpus_per_replica
from trio_ray.config import JobConfig, ModelConfig, S3Config, settings_given
from trio_ray.errors import ConfigError, StoreError
from trio_ray.method.method import Method
from trio_ray.model.checkpoint import Checkpoint, check_checkpoint
from trio_ray.model.device_memory import DeviceMemory, device_memory
from trio_ray.model.loading import pinned, resolve_dtype
from trio_ray.precompute.calibration_task import calibrate_here
from trio_ray.precompute.codec_basis import NamedCodec, named_codec
from trio_ray.precompute.open_settings import (
    CalibrationSpec,
    Calibrator,
    Chosen,
    has_open_settings,
    make_or_join,
    with_existing,
)
from trio_ray.precompute.part_size import PartSize
from trio_ray.source.sample import Shard
from trio_ray.source.shards import shard_name, split_file
from trio_ray.store.bases import store_basis
from trio_ray.store.catalog import unseal
from trio_ray.store.commit_table import CommitTable, ShardProgress, read_commits
from trio_ray.store.commits import delete_commits
from trio_ray.store.dataset import Dataset, check_same, create_or_check, existing_dataset, hash_identity, new_dataset
from trio_ray.store.input_version import is_copy
from trio_ray.store.inputs import InputFile, StoreOpener, expand_inputs
from trio_ray.store.objects import ObjectStore
from trio_ray.store.opening import S3_SCHEME, local_path, open_output, open_store

LISTING_THREADS = 32

TRIAL_SHARDS_A_REPLICA = 4
"""A trial takes samples of so many shards for each replica: of more, most of its time would be opening files."""

FITS_ANYWHERE_BYTES = 4 << 30
"""A model that needs less fits on any device, so that the cluster need not be asked, which takes it seconds."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A shard that still has work in it, and the parts of it that are committed. `limit` ends it early, in a trial."""

    shard: Shard
    committed: frozenset[int]
    limit: int | None = None


@dataclass
class JobPlan:
    """What a run will do.

    Attributes:
        model: the job's model, with the commit and the arithmetic that every replica takes.
        chosen: by setting that was left open, what a new cache got and why, in one line.
        commits: the parts that were there when the plan was made.
        tasks: shards with work left.
        complete: shards that need none.
        lost: shards that cannot be processed, each with the reason: files that cannot be read, or have changed since a
            part of them was committed.
    """

    run_id: str
    store: ObjectStore
    dataset: Dataset
    method: Method
    model: ModelConfig
    commits: CommitTable
    chosen: dict[str, str] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)
    complete: list[Shard] = field(default_factory=list)
    lost: list[tuple[Shard, str]] = field(default_factory=list)

    @property
    def shards(self) -> int:
        """Number of all shards."""
        return len(self.tasks) + len(self.complete) + len(self.lost)


@dataclass(frozen=True)
class _Checked:
    """A configuration that can be run, as far as that can be known before anything is written."""

    config: JobConfig
    given: set[str]
    checkpoint: Checkpoint
    dtype: torch.dtype
    units: list[tuple[Shard, str | None]]
    store: ObjectStore
    named: NamedCodec | None
    identity: dict[str, Any]

    def part_samples(self, chosen: Chosen) -> int:
        """Samples of a part of a new cache, given what was chosen for it."""
        layers = self.checkpoint.config.get_text_config().num_hidden_layers
        size = PartSize(self.config, chosen.method(self.config, layers).schedule, self.checkpoint.config, self.dtype)
        if chosen.codec is not None:
            return size.samples_made_smaller(chosen.codec.times_smaller)
        return size.samples(self.named.codec if self.named else None)


def plan_job(config: JobConfig, with_gpu: bool, calibrate: Calibrator = calibrate_here) -> JobPlan:
    """Check a configuration against the world, create or join its cache, and find what is left to do.

    Args:
        config: the job.
        with_gpu: whether the replicas will have a GPU; decides what `dtype: auto` means.
        calibrate: chooses what the settings of a new cache leave open.

    Raises:
        ConfigError: model, method, input or output cannot work; names the field. Nothing was written then.
        IdentityMismatch: the output holds a cache of other settings.
        JobFailed: what the settings leave open could not be chosen.
    """
    checked = _check(config, with_gpu, open_output)
    config, store, identity, named = checked.config, checked.store, checked.identity, checked.named
    chosen: dict[str, str] = {}
    if existing_dataset(store) is None:
        _check_lost_manifest(checked)
    if has_open_settings(config):
        spec = _calibration_spec(config, identity, checked.dtype)
        dataset, chosen = make_or_join(store, identity, checked.part_samples, spec, calibrate, checked.given)
    else:
        samples = checked.part_samples(Chosen())
        dataset = create_or_check(store, identity, samples, config.model.label, checked.given)
    if named is not None and named.basis is not None:
        store_basis(store, named.basis)
    commits = read_commits(store, LISTING_THREADS)
    method = method_of(dataset.identity)
    plan = JobPlan(uuid.uuid4().hex[:12], store, dataset, method, config.model, commits, chosen)
    _find_work(plan, checked.units, config, config.pipeline.redo_damaged)
    if plan.tasks:
        unseal(store)
    return plan


def _check_lost_manifest(checked: _Checked) -> None:
    """Let a run make a lost `dataset.json` anew only if it would be the same: parts must not get a manifest of other
    settings, or be cut at other samples.

    Raises:
        ConfigError: parts are there, and it is not known that it would be the same.
    """
    config, store = checked.config, checked.store
    commits = list(read_commits(store, LISTING_THREADS))
    if not commits:
        return
    same = not has_open_settings(config)
    if same:
        samples = checked.part_samples(Chosen())
        wanted = hash_identity(checked.identity)
        sizes = [one.stored + one.quarantined for one in commits if not one.last]
        is_cut_alike = config.source.text_only == "skip" or all(size == samples for size in sizes)
        same = is_cut_alike and all(one.identity_hash == wanted for one in commits)
    if not same:
        raise ConfigError(
            "output",
            f"{config.output} holds {len(commits)} parts, its dataset.json is lost, and these settings would make "
            "another one; restore it from a copy, give the settings that it was made with, or use another output",
        )


def preview_job(config: JobConfig, with_gpu: bool) -> tuple[JobPlan, bool]:
    """What `plan_job` would find, and whether it would make a new cache. Nothing is written, deleted or calibrated.

    Raises:
        ConfigError: as `plan_job`, but whether the output can be written is not tried.
        IdentityMismatch: the output holds a cache of other settings.
    """
    checked = _check(config, with_gpu, open_store)
    config, store, identity = checked.config, checked.store, checked.identity
    dataset = existing_dataset(store)
    is_new = dataset is None
    if dataset is None:
        dataset = new_dataset(identity, 1, config.model.label)
    else:
        check_same(store, dataset, with_existing(identity, config, dataset), checked.given)
    commits = read_commits(store, LISTING_THREADS)
    plan = JobPlan("preview", store, dataset, method_of(dataset.identity), config.model, commits)
    _find_work(plan, checked.units, config, redo_damaged=False)
    return plan, is_new


def _check(config: JobConfig, with_gpu: bool, open_store_to: Callable[[str, S3Config], ObjectStore]) -> _Checked:
    if not config.input:
        raise ConfigError("input", "names no shards; give paths or s3:// URIs")
    if not config.output:
        raise ConfigError("output", "is missing; give a folder or s3://bucket/prefix")
    if any("\ud800" <= sign <= "\udfff" for sign in config.output):
        raise ConfigError("output", f"{config.output!r} is not UTF-8, which no record can hold; use another name")
    given = settings_given(config)
    checkpoint, dtype = _check_model(config, with_gpu)
    arithmetic = {"dtype": str(dtype).removeprefix("torch.")}  # a replica must not choose another on its own device
    config = config.model_copy(update={"model": pinned(config.model).model_copy(update=arithmetic)})
    text = checkpoint.config.get_text_config()
    method = config.method.build(text.num_hidden_layers)
    units = find_units(config)
    store = open_store_to(config.output, config.s3)
    _check_apart(config.output, (shard.uri for shard, _ in units))
    named = named_codec(config, checkpoint.folder, method.schedule, text)
    identity = build_identity(config, checkpoint.folder, dtype, method, named.codec.spec if named else None)
    return _Checked(config, given, checkpoint, dtype, units, store, named, identity)


def _calibration_spec(config: JobConfig, identity: dict[str, Any], dtype: torch.dtype) -> CalibrationSpec:
    arithmetic = {"dtype": str(dtype).removeprefix("torch."), "matmul": "dtype"}  # gradients are needed
    model = config.model.model_copy(update=arithmetic)
    fingerprint = {name: value for name, value in identity["model"].items() if name not in arithmetic}
    return CalibrationSpec(config.model_copy(update={"model": model}).absolute(), fingerprint)


def _check_model(config: JobConfig, with_gpu: bool) -> tuple[Checkpoint, torch.dtype]:
    """The checked model, and the replicas' arithmetic."""
    checkpoint = check_checkpoint(config.model, config.prompt)
    device = torch.device("cuda" if with_gpu else "cpu")
    dtype = resolve_dtype(config.model.dtype, device)
    _check_memory(config, checkpoint, dtype, device)
    if config.cache.targets != "none":
        checkpoint.check_targets()
    return checkpoint, dtype


def _check_memory(config: JobConfig, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model that does not fit where the replicas will be: on this machine, or on the cluster's nodes."""
    gpus = gpus_per_replica(config.replicas.gpus)
    if not cluster_given():
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "replicas.gpus",
                f"{gpus:g} GPUs a replica are wanted, and this machine has none that torch can use; set it to 0, or "
                "name a cluster by RAY_ADDRESS",
            )
        memory: DeviceMemory | None = device_memory(device)
    elif checkpoint.needed_bytes(dtype) < FITS_ANYWHERE_BYTES or not ray.is_initialized():
        return
    else:
        memory = replica_memory(config.replicas, gpus)
    if memory is None:
        log.warning("no node had room for a replica yet, so it is not known whether the model fits into its memory")
    else:
        checkpoint.check_memory(dtype, memory.shared_by(gpus) if device.type == "cuda" else memory)


def _check_apart(output: str, inputs: Iterable[str]) -> None:
    """Refuse input that lies in the output: `verify` would take it for foreign files, and a glob the output for input.

    Raises:
        ConfigError: such an input; names `output`.
    """
    folder = (output if output.startswith(S3_SCHEME) else str(local_path(output).resolve())).rstrip("/") + "/"
    inside = next((uri for uri in inputs if uri.startswith(folder)), None)
    if inside is not None:
        raise ConfigError("output", f"{output} holds the input {inside}; give a folder or prefix without input in it")


def find_units(config: JobConfig) -> list[tuple[Shard, str | None]]:
    """All units of work, each with the reason why it cannot be done, if there is one."""
    opener = StoreOpener(config.s3)
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        of_files = pool.map(lambda file: _units_of(file, config, opener), expand_inputs(config.input, config.s3))
        return [unit for units in of_files for unit in units]


def _units_of(file: InputFile, config: JobConfig, opener: StoreOpener) -> list[tuple[Shard, str | None]]:
    whole = Shard(shard_name(file.uri), file.uri, file.size, file.etag, "webdataset")
    if not file.readable:
        return [(whole, file.why)]
    try:
        return [(shard, None) for shard in split_file(file.uri, file.size, file.etag, config.source, opener)]
    except StoreError as error:
        return [(whole, str(error))]


def _find_work(plan: JobPlan, units: list[tuple[Shard, str | None]], config: JobConfig, redo_damaged: bool) -> None:
    limits = _limits(units, config)
    progress = plan.commits.progress()
    # By file, because the rows of a file that has changed are cut into other shards.
    begun: dict[str, list[ShardProgress]] = {}
    for one in progress.values():
        begun.setdefault(one.source.uri, []).append(one)
    replaced: set[str] = set()
    changed = _changed_files([shard for shard, reason in units if reason is None], begun, StoreOpener(config.s3))
    for shard, reason in units if limits is None else [unit for unit in units if unit[0].name in limits]:
        if reason is None and shard.uri in changed and shard.uri not in replaced:
            damage = next((one.damage for one in begun[shard.uri] if one.damage), None)
            if damage is None:
                reason = "has changed since parts of it were committed; write this version to another output"
            elif redo_damaged:
                _take_out(plan.store, begun[shard.uri])
                replaced.add(shard.uri)
            else:
                reason = (
                    f"was damaged when parts of it were committed ({damage}) and has changed since; with "
                    "--redo-damaged (pipeline.redo_damaged) this version replaces what was committed of it"
                )
        if reason is not None:
            plan.lost.append((shard, reason))
        else:
            limit = None if limits is None else limits[shard.name]
            _sort_in(plan, shard, None if shard.uri in replaced else progress.get(shard.name), limit)


def _limits(units: list[tuple[Shard, str | None]], config: JobConfig) -> dict[str, int] | None:
    """Of a trial the shards that it takes, all over the input, each with the number of its samples; else None."""
    limit = config.pipeline.limit
    if limit is None:
        return None
    most = min(len(units), limit, TRIAL_SHARDS_A_REPLICA * config.replicas.max)
    chosen = [units[number * len(units) // most][0] for number in range(most)]
    return {shard.name: (limit + place) // most for place, shard in enumerate(chosen)}


def _changed_files(shards: list[Shard], begun: dict[str, list[ShardProgress]], opener: StoreOpener) -> set[str]:
    """The files that are other ones than parts were committed of."""
    files = {shard.uri: shard for shard in shards if shard.uri in begun}  # all shards of a file have its version
    with ThreadPoolExecutor(LISTING_THREADS) as pool:  # where all are copies, all are read
        same = pool.map(lambda shard: _is_same_input(shard, begun[shard.uri], opener), files.values())
        return {uri for uri, is_same in zip(files, same, strict=True) if not is_same}


def _is_same_input(shard: Shard, begun: list[ShardProgress], opener: StoreOpener) -> bool:
    """Whether a file is the one that parts were committed of: by its change marker, else by its content."""
    others = {(one.source.etag, one.source.size, one.source.checksum) for one in begun}
    return all(
        etag == shard.etag or (size == shard.size and is_copy(shard.uri, size, shard.etag, etag, checksum, opener))
        for etag, size, checksum in others
    )


def _take_out(store: ObjectStore, begun: list[ShardProgress]) -> None:
    """Take what is committed of a damaged file out of the cache; what tells of the damage goes last."""
    unseal(store)
    for one in sorted(begun, key=lambda one: one.damage is not None):
        delete_commits(store, one.source.name, one.parts)


def _sort_in(plan: JobPlan, shard: Shard, progress: ShardProgress | None, limit: int | None) -> None:
    if progress is None:
        plan.tasks.append(Task(shard, frozenset(), limit))
    elif progress.complete and len(progress.parts) == max(progress.parts) + 1:
        plan.complete.append(shard)
    else:
        plan.tasks.append(Task(shard, progress.parts, limit))
