"""A KV connector for vLLM (v1 API, tried with 0.32) that reads a cache of uniform prefixes itself.

    KVTransferConfig(
        kv_connector="TrioRayConnector",
        kv_connector_module_path="trio_ray.export.vllm_connector",
        kv_role="kv_consumer",
        kv_connector_extra_config={"cache": "s3://bucket/cache"},
    )

A request names its prefix by `kv_transfer_params: {"key": ..., "shard": ...}` (the shard may be left out where keys are
unique) and gives as prompt the token ids of the prefix's rows, the image's id once for each kept row, and of what
follows. Its `cache_salt` must be `prefix_salt(key, shard)`: the ids alone do not tell one image's blocks from
another's. A prompt with an image, whose uuid is the key, needs neither.

A request whose prefix cannot be loaded ends with an error: computing it from the ids would answer without the image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.model_executor.models.utils import extract_layer_index

from trio_ray.cache.pruned_cache import PrunedCache, UnknownKey
from trio_ray.cache.unreadable import UnreadablePrefix
from trio_ray.config import ModelConfig, S3Config
from trio_ray.errors import ConfigError, TrioRayError
from trio_ray.export.uniform import (
    KeyRotation,
    NotPortable,
    UniformKV,
    image_row_counts,
    prefix_salt,
    require_uniform,
    row_ids,
)
from trio_ray.model.loading import model_folder

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

SETTINGS = ("cache", "endpoint_url", "profile")

log = logging.getLogger("vllm.trio_ray")  # vLLM shows what loggers below its own say

Row = dict[str, Any]


class BadRequest(TrioRayError):
    """A request does not fit the prefix that it names."""


@dataclass(frozen=True)
class Asked:
    """What a request asks for: rows of the stored prefix, or the reason why it cannot have them."""

    row: Row | None
    rows: int
    error: str | None = None


@dataclass(frozen=True)
class Load:
    """Rows `start` to `stop` of a prefix that a request needs in its blocks before the next forward pass."""

    asked: Asked
    start: int
    stop: int
    block_ids: tuple[int, ...]


@dataclass
class Loads(KVConnectorMetadata):
    """What the scheduler tells the worker for one step."""

    loads: list[Load] = field(default_factory=list)


class TrioRayConnector(KVConnectorBase_V1):
    """Loads stored keys and values into vLLM's blocks; see the module's docstring.

    Raises:
        ConfigError: a setting is unknown or absent, or the engine is spread over several devices.
        NotPortable: the cache holds no keys and values, or not the same rows in every layer.
        IdentityMismatch: another model, or another dtype, made the cache.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        _check_engine(vllm_config, kv_cache_config)
        cache = _open_cache(self._kv_transfer_config.kv_connector_extra_config)
        model = vllm_config.model_config
        if role == KVConnectorRole.SCHEDULER:
            folder = model_folder(ModelConfig(name=model.model, revision=model.revision))
            cache.check_model(folder, str(model.dtype).removeprefix("torch."))
            self._scheduler = _SchedulerSide(cache, model.hf_config.image_token_index)
        else:
            self._worker = _WorkerSide(cache, vllm_config, kv_cache_config)

    def on_new_request(self, request: Request) -> None:
        """Make sure that the prefix is used by a request that would skip vLLM's own prefix cache."""
        self._scheduler.add(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Rows that can be loaded behind those that are computed; also for a request that is resumed."""
        return self._scheduler.matched(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Note where the rows are wanted."""
        if num_external_tokens > 0:
            self._scheduler.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """What is to be loaded before the step."""
        return Loads(self._scheduler.take_loads())

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Forget the request."""
        self._scheduler.forget(request.request_id)
        return False, None

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Read and restore the step's prefixes, and write them into the blocks."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Loads)
        if metadata.loads:
            self._worker.load(metadata.loads)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that hold nothing, because their prefix could not be read; vLLM ends their requests."""
        return self._worker.take_failed_blocks()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Everything is loaded when `start_load_kv` returns."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved: caches are written by `trio-ray precompute`."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""


class _SchedulerSide:
    """Which rows of which prefix each request needs."""

    def __init__(self, cache: PrunedCache, image_token_id: int) -> None:
        self._cache = cache
        self._image_token_id = image_token_id
        self._asked: dict[str, Asked | None] = {}
        self._starts: dict[str, int] = {}
        self._loads: list[Load] = []

    def add(self, request: Request) -> None:
        asked = self._asked[request.request_id] = self._find(request)
        if asked is None:
            return
        # vLLM loads nothing for a request that asks for the prompt's log-probabilities, and would then read the image
        # rows as text. They are not computed here, so there are none to give.
        request.skip_reading_prefix_cache = False
        if request.sampling_params is not None:
            request.sampling_params.prompt_logprobs = None

    def matched(self, request: Request, computed: int) -> int:
        asked = self._asked.get(request.request_id)
        if asked is None:
            return 0
        self._starts[request.request_id] = computed
        # The last token must be computed, or there would be nothing to sample from.
        return max(0, min(asked.rows, request.num_tokens - 1) - computed)

    def allocated(self, request: Request, block_ids: Sequence[int], rows: int) -> None:
        asked, start = self._asked[request.request_id], self._starts[request.request_id]
        assert asked is not None
        self._loads.append(Load(asked, start, start + rows, tuple(block_ids)))

    def take_loads(self) -> list[Load]:
        loads, self._loads = self._loads, []
        return loads

    def forget(self, request_id: str) -> None:
        self._asked.pop(request_id, None)
        self._starts.pop(request_id, None)

    def _find(self, request: Request) -> Asked | None:
        """What a request asks for; None for one that has nothing to do with the cache."""
        try:
            row = self._row(request)
            if row is None:
                return None
            ids = row_ids(row["prompt_ids"], self._image_token_id, image_row_counts(row))
            given = request.prompt_token_ids
            if given is None or list(given[: len(ids)]) != ids:
                raise BadRequest(
                    f"the prompt does not begin with the {len(ids)} token ids of prefix {row['key']!r}: the prompt's "
                    f"own ids, and the image's id {self._image_token_id} once for each kept row"
                )
            return Asked(row, len(ids))
        except TrioRayError as error:
            log.error("request %s fails: %s", request.request_id, error)
            return Asked(None, request.num_prompt_tokens, str(error))

    def _row(self, request: Request) -> Row | None:
        named = request.kv_transfer_params
        if named and "key" in named:
            key, shard = named["key"], named.get("shard")
            if not isinstance(key, str) or not isinstance(shard, str | None):
                raise BadRequest("kv_transfer_params: key and shard are texts")
            salt = prefix_salt(key, shard)
            if request.cache_salt != salt and not request.mm_features:
                raise BadRequest(
                    f"cache_salt is {request.cache_salt!r} and must be {salt!r}, or images would share their blocks"
                )
            return self._cache.row(key, shard)
        if not request.mm_features:
            return None
        try:
            return self._cache.row(request.mm_features[0].identifier)
        except UnknownKey:
            return None  # an image that the cache does not hold is encoded as usual


class _WorkerSide:
    """Stored bytes into vLLM's blocks."""

    def __init__(self, cache: PrunedCache, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        (group,) = kv_cache_config.kv_cache_groups
        self._cache = cache
        self._block_size = group.kv_cache_spec.block_size
        self._context = vllm_config.compilation_config.static_forward_context
        self._layer_names = sorted(group.layer_names, key=extract_layer_index)
        self._dtype = vllm_config.model_config.dtype
        self._device = torch.device(vllm_config.device_config.device)
        self._rotation = KeyRotation(vllm_config.model_config.hf_config.get_text_config())
        self._failed: set[int] = set()

    def take_failed_blocks(self) -> set[int]:
        failed, self._failed = self._failed, set()
        return failed

    def load(self, loads: Sequence[Load]) -> None:
        """Restore all prefixes of a step together and write them; one that fails does not keep the others."""
        sound: list[Load] = []
        rows: list[Row] = []
        for load in loads:
            if load.asked.row is None:
                self._fail(load, str(load.asked.error))
            else:
                sound.append(load)
                rows.append(load.asked.row)
        try:
            outcomes = self._cache.restore(self._cache.fetch(rows), self._device)
        except TrioRayError as error:
            for load in sound:
                self._fail(load, str(error))
            return
        for load, outcome in zip(sound, outcomes, strict=True):
            if isinstance(outcome, UnreadablePrefix):
                self._fail(load, str(outcome))
                continue
            try:
                self._write(self._rotation.to_row_0(outcome.prefix), load)
            except ValueError as error:
                self._fail(load, f"prefix {outcome.row['key']!r}: {error}")

    def _write(self, kv: UniformKV, load: Load) -> None:
        if len(kv.keys) != len(self._layer_names) or kv.rows < load.stop:
            raise ValueError(f"{len(kv.keys)} layers of {kv.rows} rows do not fit the model and the prompt")
        rows = torch.arange(load.start, load.stop)
        blocks = torch.tensor(load.block_ids)[rows // self._block_size]
        slots = (blocks * self._block_size + rows % self._block_size).to(self._device)
        for number, name in enumerate(self._layer_names):
            layer = self._context[name]
            keys, values = (kv[number, load.start : load.stop].to(self._dtype) for kv in (kv.keys, kv.values))
            layer.impl.do_kv_cache_update(layer, keys, values, layer.kv_cache, slots)

    def _fail(self, load: Load, reason: str) -> None:
        log.error("a prefix was not loaded, and its request fails: %s", reason)
        first, last = load.start // self._block_size, (load.stop - 1) // self._block_size
        self._failed.update(load.block_ids[first : last + 1])


def _open_cache(settings: Mapping[str, Any]) -> PrunedCache:
    unknown = set(settings) - set(SETTINGS)
    if unknown or "cache" not in settings:
        raise ConfigError(
            "kv_connector_extra_config",
            f"it takes {', '.join(SETTINGS)}, of which cache (a folder or s3://bucket/prefix) must be given; "
            f"found {', '.join(sorted(settings)) or 'nothing'}",
        )
    s3 = S3Config(endpoint_url=settings.get("endpoint_url"), profile=settings.get("profile"))
    cache = PrunedCache(settings["cache"], s3)
    if cache.level != "kv":
        raise NotPortable(
            cache.uri,
            f"the connector loads keys and values, and the cache holds {cache.level}; give its samples to vLLM by "
            "`trio-ray export`, or precompute with cache.level: kv",
        )
    require_uniform(cache)
    return cache


def _check_engine(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
    parallel = vllm_config.parallel_config
    if parallel.world_size > 1 or parallel.data_parallel_size > 1:
        raise ConfigError(
            "tensor_parallel_size",
            "the connector loads whole prefixes on one device: serve with tensor, pipeline and data parallel size 1, "
            "or start several engines",
        )
    if len(kv_cache_config.kv_cache_groups) != 1:
        raise ConfigError(
            "model", "the connector needs one KV cache group, all layers with full attention; this model has several"
        )
    policy = vllm_config.kv_transfer_config.kv_load_failure_policy
    if policy != "fail":
        raise ConfigError(
            "kv_load_failure_policy", f"must be fail, not {policy}: image rows cannot be computed from their ids"
        )
