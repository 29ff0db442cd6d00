"""lmms-eval's requests, answered by pruning on the fly or from a cache.

    lmms_eval --model trio_ray --model_args pretrained=llava-hf/llava-v1.6-vicuna-7b-hf,retention=0.111 --tasks pope
    lmms_eval --model trio_ray --model_args cache=s3://bucket/cache --tasks pope

A cache serves a task whose prompts it holds word for word, post-prompt included, under the documents' own keys, or
under the rows of all files of the task's split (source.keys: row).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from lmms_eval.api.model import lmms  # type: ignore[import-not-found]
from PIL.Image import Image

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import (
    MethodConfig,
    ModelConfig,
    PromptConfig,
    SourceConfig,
    load_section,
    parse_section,
)
from trio_ray.errors import ConfigError
from trio_ray.evaluate.config import AnsweringConfig
from trio_ray.evaluate.decode import PrefixDecoder
from trio_ray.evaluate.document_keys import DocumentKeys
from trio_ray.evaluate.join import join, tasks_of
from trio_ray.evaluate.question import NoAnswer, Question, Unanswered
from trio_ray.evaluate.stored_level import require_prefixes
from trio_ray.model.checkpoint import check_checkpoint
from trio_ray.model.packing import pack
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.ordered import ordered_map
from trio_ray.source.record import key_of
from trio_ray.source.rejection import Rejected
from trio_ray.source.sample import BadSample, Sample, Turn

DEFAULT_NEW_TOKENS = 128
PREPARE_THREADS = 2


@dataclass(frozen=True)
class _Request:
    """The arguments of a `generate_until` instance, in lmms-eval's order."""

    context: str
    settings: dict[str, Any]
    doc_to_visual: Callable[[dict[str, Any]], Iterable[Image]]
    doc_id: int
    task: str
    split: str

    def __post_init__(self) -> None:
        if self.settings.get("do_sample") or (self.settings.get("temperature") or 0) > 0:
            raise ConfigError("generation_kwargs", f"the task {self.task} samples; trio_ray decodes greedily")
        if (self.settings.get("num_beams") or 1) > 1:
            raise ConfigError("generation_kwargs", f"the task {self.task} wants beams; trio_ray decodes greedily")

    @property
    def new_tokens(self) -> int:
        """Longest answer, in tokens."""
        return int(self.settings.get("max_new_tokens") or DEFAULT_NEW_TOKENS)

    def cut(self, answer: str) -> str:
        """The answer up to the first of the task's stop texts."""
        until = self.settings.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            answer = answer.partition(stop)[0]
        return answer.strip()


class TrioRay(lmms):
    """LLaVA-NeXT with TRIO's token selection.

    Args:
        pretrained: 'bundled', a folder, or a hub name; by default the model that made the cache, and without a cache
            the bundled one.
        cache: a folder or s3://bucket/prefix; without one, images are encoded and pruned here.
        revision: branch, tag or commit of a hub model; by default the commit that made the cache.
        dtype: arithmetic; 'auto' is the cache's, or bfloat16 on a GPU.
        token_budget: prompt tokens in one prefilled batch.
        device: where the model runs, 'cuda:1' and so on.
        batch_size, max_batch_size: lmms-eval hands them to every model; batches here go by `token_budget`.
        method: settings of `MethodConfig` by name, without a cache: retention=0.111, selector=trio-plus,
            settings.threshold=0.7 and so on.

    Raises:
        ConfigError: a setting that does not exist, or makes no sense beside a cache; a cache without prefixes.
        IdentityMismatch: another model made the cache.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        cache: str | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        token_budget: int = 16384,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **method: Any,
    ) -> None:
        super().__init__()
        if cache is not None and method:
            raise ConfigError(next(iter(method)), "says how to prune, but the cache's prefixes are pruned already")
        self._cache = PrunedCache(cache) if cache is not None else None
        self._method = load_section(MethodConfig, values=method)
        if self._method.schedule == "auto":
            raise ConfigError("schedule", "auto is for caches, which choose it once; give prune_points and weights")
        self._token_budget = token_budget
        self._keys_of_splits: dict[tuple[str, str], DocumentKeys] = {}
        named = {"name": pretrained} if pretrained is not None else {}
        model = parse_section(ModelConfig, {**named, "revision": revision, "dtype": dtype})
        prompt = PromptConfig()
        if self._cache is not None:
            require_prefixes(self._cache)
            model = self._cache.model_that_made_it(model)
            prompt = PromptConfig.model_validate(self._cache.dataset.identity["prompt"])
            self._cache.check_model(check_checkpoint(model, prompt).folder, model.dtype)
        self._replica = Replica.load(model, prompt, device=None if device is None else torch.device(device))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers, in the requests' order.

        Raises:
            ConfigError: a task that wants sampling or beams.
            NoAnswer: the cache has no prefix for a request, or a request has no sound image.
        """
        asked = [_Request(*request.args) for request in requests]
        answers: dict[int, str] = {}
        by_length = sorted(range(len(asked)), key=lambda number: asked[number].new_tokens)
        for new_tokens, numbers in groupby(by_length, key=lambda number: asked[number].new_tokens):
            group = {number: asked[number] for number in numbers}
            answers |= self._prune(group, new_tokens) if self._cache is None else self._look_up(group, new_tokens)
        for number, request in enumerate(asked):
            answers[number] = request.cut(answers[number])
            self.cache_hook.add_partial("generate_until", (request.context, request.settings), answers[number])
        return [answers[number] for number in range(len(asked))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: a prefix has no image tokens left to score other texts against."""
        raise NotImplementedError("trio_ray answers generate_until tasks; this task asks for log-likelihoods")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("trio_ray answers generate_until tasks; this task goes over several rounds")

    def _look_up(self, requests: dict[int, _Request], new_tokens: int) -> dict[int, str]:
        assert self._cache is not None
        source = SourceConfig.model_validate(self._cache.dataset.identity["source"])
        numbers = list(requests)
        questions = [self._question(requests[number], source) for number in numbers]
        found, missing = join(questions, self._cache, "exact")
        if missing:
            raise NoAnswer(missing[0], len(missing) - 1)
        settings = AnsweringConfig(max_new_tokens=new_tokens)
        decoded = PrefixDecoder(self._cache, self._replica, settings).run(tasks_of(found))
        for place, fault in decoded.faults.items():
            key = questions[place].key
            raise NoAnswer(Unanswered(key, key, fault.outcome, fault.detail), len(decoded.faults) - 1)
        return {numbers[place]: answer for place, answer in decoded.answers.items()}

    def _prune(self, requests: dict[int, _Request], new_tokens: int) -> dict[int, str]:
        replica = self._replica
        method = self._method.build(replica.decoder.depth)
        prepare = replica.preparer(max_pixels=SourceConfig().max_pixels, schedule=method.schedule).prepare
        samples = (self._sample(number, request) for number, request in requests.items())
        answers: dict[int, str] = {}
        for batch in pack(ordered_map(prepare, samples, PREPARE_THREADS, lookahead=32), self._token_budget):
            good = [sample for sample in batch if isinstance(sample, PreparedSample)]
            for bad in batch:
                if isinstance(bad, BadSample):
                    raise Rejected(bad.reason, f"document {bad.key}: {bad.detail}")
            prefixes = replica.prefill(good, method).prefixes
            texts = replica.generate(prefixes, new_tokens)
            answers.update(zip((sample.index for sample in good), texts, strict=True))
        return answers

    def _question(self, request: _Request, source: SourceConfig) -> Question:
        """The request as a question to a cache: keyed as precompute keys the document's row."""
        if source.keys == "row":
            key, shard = self._row_keys(request, source).of(request.doc_id)
        else:
            key, shard = key_of(self._document(request), source, "", request.doc_id), ""
        return Question(key, shard, key, request.context.strip(), None, None)

    def _row_keys(self, request: _Request, source: SourceConfig) -> DocumentKeys:
        assert self._cache is not None
        split = (request.task, request.split)
        if split not in self._keys_of_splits:
            documents = len(self.task_dict[request.task][request.split])
            shards = (commit.shard for commit in self._cache.commits)
            self._keys_of_splits[split] = DocumentKeys(shards, source, documents)
        return self._keys_of_splits[split]

    def _document(self, request: _Request) -> dict[str, Any]:
        document: dict[str, Any] = self.task_dict[request.task][request.split][request.doc_id]
        return document

    def _sample(self, number: int, request: _Request) -> Sample:
        images = tuple(_png(visual) for visual in request.doc_to_visual(self._document(request)))
        return Sample(f"{request.task}/{request.doc_id}", number, images, (Turn("user", request.context),))


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG")
    return file.getvalue()
