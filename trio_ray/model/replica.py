"""One LLaVA-NeXT model on one device, from prepared samples to pruned prefixes and on to answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from trio_ray.config import ModelConfig, PromptConfig
from trio_ray.errors import ConfigError
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.embeds import Embeds, EmbedsBatch
from trio_ray.kv.prefix import Prefix
from trio_ray.method.known_indices import KnownIndices
from trio_ray.method.method import Method
from trio_ray.method.rows import PackedRows, Positions
from trio_ray.method.schedule import Schedule
from trio_ray.method.suppression import Speculation
from trio_ray.method.visionzip import VisionZip
from trio_ray.model.attention import Backend, choose_backend, packed_attention
from trio_ray.model.checkpoint import check_checkpoint
from trio_ray.model.conversation import Conversation
from trio_ray.model.decode.choice import GREEDY, Sampling
from trio_ray.model.decode.engine import Engine, Request, answers_in_order, prompt_requests
from trio_ray.model.decoder import Decoder, default_device
from trio_ray.model.device_memory import device_memory
from trio_ray.model.image_scope import Scope, up_to_images
from trio_ray.model.known import check_reduction, known_indices
from trio_ray.model.loading import load_model, resolve_dtype
from trio_ray.model.matrix import why_not_fp8
from trio_ray.model.prefill import Prefill, pruned_prefill
from trio_ray.model.prepare import PreparedImage, PreparedSample, SamplePreparer
from trio_ray.model.prompt import PromptError, PromptWriter
from trio_ray.model.retained import retained_embeds, row_token_ids
from trio_ray.model.tiles import Tiler
from trio_ray.model.vision import VisionEncoder
from trio_ray.source.sample import Turn
from trio_ray.tensors import to_device


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
    _engine: Engine | None = None

    @classmethod
    def load(
        cls, config: ModelConfig, prompt: PromptConfig | None = None, device: torch.device | None = None
    ) -> Replica:
        """Check a model (`check_checkpoint`), then load it.

        Raises:
            ConfigError: it cannot be run, or not as configured; nothing was loaded.
        """
        device = device or default_device()
        checkpoint = check_checkpoint(config, prompt)
        dtype = resolve_dtype(config.dtype, device)
        checkpoint.check_memory(dtype, device_memory(device))
        attention = choose_backend(config.attention, device, dtype)
        if config.matmul == "fp8" and (reason := why_not_fp8(device, dtype)):
            raise ConfigError("model.matmul", f"fp8 cannot be used: {reason}")
        model = load_model(checkpoint.folder, dtype, device)
        decoder = Decoder.of(model.model.language_model, model.lm_head)
        return cls(
            decoder=decoder.in_fp8() if config.matmul == "fp8" else decoder,
            vision=VisionEncoder(model.model, checkpoint.tiler, dtype),
            writer=checkpoint.writer,
            tiler=checkpoint.tiler,
            image_token_id=checkpoint.config.image_token_id,
            stop_tokens=checkpoint.stop_tokens,
            device=device,
            dtype=dtype,
            attention=attention,
            model=model,
        )

    def preparer(
        self,
        max_pixels: int,
        instruction: str | None = None,
        with_answers: bool = False,
        schedule: Schedule | None = None,
    ) -> SamplePreparer:
        """The CPU side that belongs to this model.

        Args:
            max_pixels: larger images are rejected.
            instruction: stands in for every sample's own text (scope image).
            with_answers: tokenize the true answers too.
            schedule: rejects samples that its fixed budget has no room for.

        Raises:
            ConfigError: answers are wanted, and the model has no stop token to end them with.
        """
        if with_answers and not self.stop_tokens:
            raise ConfigError(
                "cache.targets", "the model's generation_config.json names no eos_token_id to end answers"
            )
        return SamplePreparer(
            self.tiler,
            self.writer,
            self.image_token_id,
            self.decoder.context,
            max_pixels,
            instruction,
            self.stop_tokens if with_answers else (),
            schedule,
        )

    def prefill(
        self,
        samples: Sequence[PreparedSample],
        method: Method,
        *,
        scope: Scope = "prompt",
        top_k: int = 1,
        known: Sequence[Sequence[Sequence[int]]] | None = None,
        speculation: Speculation | None = None,
    ) -> Prefilled:
        """Prefill a batch of prompts, and drop image tokens on the way.

        With `known` indices nothing is scored. On the same machine and in the same batches the prefixes are then, bit
        for bit, those that were selected. Without an encoder step to be checked, nothing waits for the device.

        Args:
            samples: the batch; with known indices, prepared again from the same input under the same instruction.
            method: how many image tokens stay in which layer, and which ones.
            scope: "image" selects with the whole prompt in view, then leaves off what stands behind the last image.
            top_k: entries wanted of the first token's distribution.
            known: for each sample the column `kept` of its row in a cache, instead of a selection.
            speculation: permission to go on before suppression is known to have converged.

        Raises:
            KnownIndicesError: the known indices do not belong to these samples, or the encoder's reduction, made again,
                has left others.
        """
        if known is None:
            budgets = [method.schedule.counts(sample.image_tokens) for sample in samples]
            selector = replace(method.selector, speculation=speculation) if speculation else method.selector
        else:
            selector = known_indices(samples, known, len(method.schedule.prune_points))
            budgets = selector.budgets()
        reducer = method.encoder_reducer
        hidden, rows = self.embed(samples, [budget[0] for budget in budgets] if reducer else None, reducer)
        if reducer and isinstance(selector, KnownIndices):
            check_reduction(samples, selector.kept, rows)
        method = replace(method, selector=selector)
        done = pruned_prefill(self.decoder, hidden, rows, method, budgets, packed_attention(self.attention))
        prompts = [sample.prompt_ids for sample in samples]
        return Prefilled(hidden, done, scope, top_k, prompts, self.image_token_id)

    @torch.no_grad()
    def prefill_embeds(
        self, embeds: Sequence[Embeds], top_k: int = 1, positions: Positions = "compact"
    ) -> list[Prefix]:
        """Prefixes from stored input embeddings: every layer holds all of their rows, and nothing more is dropped.

        Args:
            embeds: of a batch.
            top_k: entries wanted of the first token's distribution; 0 for embeddings that end with the image.
            positions: "compact" numbers the rows from 0 on, as an engine does that gets them as a prompt; "original"
                leaves each row where it was.
        """
        rows = PackedRows.pack([~item.text.cpu() for item in embeds], self.device)
        if positions == "original":
            position = to_device(torch.cat([item.position.long().cpu() for item in embeds]), self.device)
            rows = replace(rows, position=position, ends=tuple(item.length for item in embeds))
        hidden = torch.cat([item.rows.to(self.device, self.dtype) for item in embeds])
        method, budgets = Method.unpruned(self.decoder.depth, positions), [()] * len(embeds)
        prefill = pruned_prefill(self.decoder, hidden, rows, method, budgets, packed_attention(self.attention))
        return prefill.prefixes(top_k).split()

    @torch.no_grad()
    def embed(
        self,
        samples: Sequence[PreparedSample],
        reduced_to: Sequence[int] | None = None,
        encoder_reducer: VisionZip | None = None,
    ) -> tuple[Tensor, PackedRows]:
        """(T, d) packed input embeddings of whole prompts, image features in place, and their layout.

        With an `encoder_reducer`, sample s has only `reduced_to[s]` image tokens; its rows' `image_index` says which.
        """
        if reduced_to is None or encoder_reducer is None:
            ids = self._input_ids(samples)
            features = self._image_features(samples)
            tokens = [features[image.hash] for sample in samples for image in sample.images]
            index = None
        else:
            shares = [_share(count, sample.images) for count, sample in zip(reduced_to, samples, strict=True)]
            ids = self._input_ids(samples, shares)
            tokens, index = self._reduced_features(samples, shares, encoder_reducer)
        rows = PackedRows.pack([run == self.image_token_id for run in ids], self.device)
        hidden = self.decoder.embed(to_device(torch.cat(ids), self.device))
        hidden[rows.image_rows] = torch.cat(tokens)
        return hidden, rows if index is None else rows.renumbered(index)

    def _input_ids(
        self, samples: Sequence[PreparedSample], image_tokens: Sequence[Sequence[int]] | None = None
    ) -> list[Tensor]:
        """Of each sample (rows,) int64, one id a row; `image_tokens` of its images where they are not all there.

        From one small tensor of all prompts: making tensors of long lists keeps Python's lock for long.
        """
        if image_tokens is None:
            image_tokens = [[image.tokens for image in sample.images] for sample in samples]
        ids = torch.tensor([token for sample in samples for token in sample.prompt_ids])
        times = torch.ones_like(ids)
        times[ids == self.image_token_id] = torch.tensor([count for counts in image_tokens for count in counts])
        texts = [len(sample.prompt_ids) - len(sample.images) for sample in samples]
        rows = [text + sum(counts) for text, counts in zip(texts, image_tokens, strict=True)]
        return list(ids.repeat_interleave(times).split(rows))

    @property
    def engine(self) -> Engine:
        """Decodes for `generate` and `ask`; made when it is first used. Its memory grows to what they need."""
        if self._engine is None:
            self._engine = Engine(self.decoder)
        return self._engine

    def converse(self, prefixes: Sequence[Prefix], prompts: Sequence[str]) -> Conversation:
        """Conversations that begin with stored prefixes, of the prompts that these cover (column `prompt`).

        Load the replica with the cache's own `PromptConfig`: another template is refused when something is asked.
        """
        return Conversation(Engine(self.decoder), self.writer, self.stop_tokens, prefixes, prompts)

    def question_tokens(self, prompt: str, question: str | Sequence[Turn]) -> list[int]:
        """The tokens of a question behind a prefix of scope image, up to where the answer begins.

        Args:
            prompt: what the prefix covers (column `prompt`).
            question: a text, or several turns that end with the user's.

        Raises:
            PromptError: the model's template does not begin a prompt as the prefix does.
        """
        held = self.writer.ids(prompt)
        turns = [Turn("user", question)] if isinstance(question, str) else question
        return self.writer.new_ids(held, self.writer.continued(prompt, turns), prompt)[1]

    def ask(
        self,
        prefixes: Sequence[Prefix],
        prompts: Sequence[str],
        questions: Sequence[str | Sequence[Turn]],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
    ) -> list[str]:
        """Answers to one question behind each prefix of scope image, as text; lengths may differ.

        Args:
            prefixes: end with their images. Those that are the same object share their memory.
            prompts: what they cover (column `prompt`).
            questions: one for each: a text, or several turns that end with the user's.
            max_new_tokens: longest answer.
            sampling: how the tokens are chosen; greedily by default.

        Raises:
            PromptError: the model's template does not begin a prompt as the prefix does, or a prefix ends with a
                question of its own.
            RequestRefused: a prefix and its question do not fit into the memory or the model's context.
        """
        if any(len(prefix.top_ids) for prefix in prefixes):
            raise PromptError("a prefix ends with a question of its own: call generate(), or converse() to go on")
        requests = [
            Request(number, prefix, max_new_tokens, self.question_tokens(prompt, question), self.stop_tokens, sampling)
            for number, (prefix, prompt, question) in enumerate(zip(prefixes, prompts, questions, strict=True))
        ]
        return self._texts(requests)

    def generate(self, prefixes: Sequence[Prefix], max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        """Answers to the prompts of prefixes of any lengths, as text.

        Args:
            prefixes: end with their prompts.
            max_new_tokens: longest answer.
            sampling: how the tokens are chosen; greedily by default. The first one is drawn from the entries that are
                stored with the prefix.

        Raises:
            NoFirstToken: a prefix of scope image.
            RequestRefused: a prefix does not fit into the memory or the model's context.
        """
        return self._texts(prompt_requests(prefixes, max_new_tokens, self.stop_tokens, sampling))

    def _texts(self, requests: Sequence[Request]) -> list[str]:
        return [self.writer.decode(answer) for answer in answers_in_order(self.engine, requests)]

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
        self._last_image = (last, known[last].clone())  # a view would keep the tokens of all the batch's images
        return known

    def _reduced_features(
        self, samples: Sequence[PreparedSample], shares: Sequence[Sequence[int]], encoder_reducer: VisionZip
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
        reduced = self.vision.reduced_tokens(features, maps, tiles, keep, encoder_reducer)
        first = [
            sum(image.tokens for image in sample.images[:n]) for sample in samples for n in range(len(sample.images))
        ]
        index = torch.cat([numbers + start for (_, numbers), start in zip(reduced, first, strict=True)])
        return [tokens for tokens, _ in reduced], index

    def _tiles(self, images: Sequence[PreparedImage]) -> Tensor:
        return to_device(torch.cat([image.tiles for image in images]), self.device)


@dataclass(frozen=True)
class Prefilled:
    """What a prefill gives: prefixes on the device, which may still be at work on them.

    Attributes:
        hidden: (T, d) input embeddings of the whole prompts.
        prefill: all that the layers left.
        scope: how far the prefixes go.
        top_k: entries of the first token's distribution.
        prompts: the prompts' token ids, each image as one `image_token_id`.
        image_token_id: the id that stands for an image.
    """

    hidden: Tensor
    prefill: Prefill
    scope: Scope
    top_k: int
    prompts: Sequence[Sequence[int]]
    image_token_id: int

    @cached_property
    def batch(self) -> PrefixBatch:
        """The prefixes, packed."""
        if self.scope == "image":
            return up_to_images(self.prefill.prefixes(0), self.prefill.rows.tails)
        return self.prefill.prefixes(self.top_k)

    @property
    def prefixes(self) -> list[Prefix]:
        """The prefixes one by one; their tensors are views of the batch's."""
        return self.batch.split()

    @cached_property
    def embeds(self) -> EmbedsBatch:
        """The input embeddings of the rows that are left behind the first prune point."""
        rows = self.prefill.rows
        tails = rows.tails if self.scope == "image" else (0,) * len(rows.tails)
        token_ids = row_token_ids(self.prompts, self.image_token_id, rows)
        left = self.prefill.left[0] if self.prefill.left else rows
        return retained_embeds(self.hidden, token_ids, rows, left, tails)


def _share(count: int, images: Sequence[PreparedImage]) -> list[int]:
    """Split a sample's budget over its images by their tokens."""
    total, given, shares = sum(image.tokens for image in images), 0, []
    tokens = 0
    for image in images:
        tokens += image.tokens
        shares.append(count * tokens // total - given)
        given += shares[-1]
    return shares
