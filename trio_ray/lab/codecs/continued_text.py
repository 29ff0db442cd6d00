"""Codecs on a pretrained language model: text continued from a prefix that has been stored and loaded.

The text is Python's own language reference, as its standard library carries it (`pydoc_data.topics`): English prose
that is there wherever this runs. A prefix begins with the tokenizer's first token; all rows behind it are coded as
image rows would be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

from trio_ray.calibration.codec_loss import (
    IN_MEMORY,
    UNROUNDED,
    Agreement,
    Loaded,
    Trial,
    agreement,
    in_16_bit,
    predict,
    store_and_load,
    unstored,
    values_of,
)
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.lab.codecs.language_model import LanguageModel
from trio_ray.method.method import Method
from trio_ray.method.rows import PackedRows
from trio_ray.model.attention import packed_attention
from trio_ray.model.prefill import pruned_prefill

LEAD = 1
"""Rows of a prefix that count as text: the one of the tokenizer's first token, which is the same in every prefix."""

WITHOUT_PREFIX = "first token alone"
SHORTEST_PARAGRAPH = 60


@dataclass(frozen=True)
class Passage:
    """A prefix's tokens, and the tokens of the text that follows it."""

    prefix: list[int]
    following: list[int]


@dataclass
class TextResult:
    """One codec on all passages.

    Attributes:
        name: of the codec, or of a control.
        surprise: per passage the negative log-probabilities of its following tokens, nats.
        agreement: per passage.
        sizes: bytes of the container; of what is not stored, of keys and values in memory.
        values: numbers in the keys and values that were to be stored.
    """

    name: str
    surprise: list[list[float]] = field(default_factory=list)
    agreement: list[Agreement] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)


def prose() -> list[str]:
    """Paragraphs of the language reference, a text each topic, in the order of their names.

    Headings, lists, code and grammar are left out, and so is a paragraph that stood in an earlier topic.
    """
    known: set[str] = set()
    texts = []
    for name in sorted(topics):
        paragraphs = [" ".join(block.split()) for block in re.split(r"\n\s*\n", topics[name])]
        new = [text for text in dict.fromkeys(paragraphs) if _is_prose(text) and text not in known]
        known.update(new)
        texts.append("\n\n".join(new))
    return texts


def passages_of(tokenizer: Any, prefix: int, following: int) -> list[Passage]:
    """The prose in pieces, none of which runs over from one topic to the next.

    Args:
        tokenizer: of the language model.
        prefix: tokens of each prefix, the tokenizer's first one included.
        following: tokens behind it.
    """
    found = []
    own = prefix - LEAD
    for text in prose():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids) - own - following + 1, own + following):
            stop = start + own
            found.append(Passage([tokenizer.bos_token_id, *ids[start:stop]], ids[stop : stop + following]))
    return found


def spread(found: Sequence[Passage], measured: int) -> tuple[list[Passage], list[Passage]]:
    """`measured` passages at equal distances over all of them, and the others, to which a basis may be fitted."""
    chosen = {number * len(found) // measured for number in range(measured)}
    return [found[n] for n in sorted(chosen)], [p for n, p in enumerate(found) if n not in chosen]


@torch.no_grad()
def prefill_text(model: LanguageModel, batch: Sequence[Passage]) -> PrefixBatch:
    """The prefixes of passages, nothing dropped; all rows but the first `LEAD` are marked as image rows."""
    device = next(model.decoder.embed.parameters()).device
    masks = [torch.arange(len(passage.prefix)) >= LEAD for passage in batch]
    rows = PackedRows.pack(masks, device)
    ids = torch.tensor([token for passage in batch for token in passage.prefix], device=device)
    attention = packed_attention("sdpa")
    method = Method.unpruned(model.decoder.depth)
    prefill = pruned_prefill(model.decoder, model.decoder.embed(ids), rows, method, [()] * len(batch), attention)
    return prefill.prefixes(top_k=1)


def measure_text(
    model: LanguageModel,
    texts: Sequence[Passage],
    trials: Sequence[Trial],
    batch: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[TextResult]:
    """Predict what follows each prefix from its 16-bit states in memory, and from those that each codec gives back.

    The last row of every prefix is decoded again over the rows before it, so no prediction is older than the coding.

    Args:
        model: the language model.
        texts: passages.
        trials: the codecs.
        batch: passages prefilled together.
        on_batch: told the number of passages done.

    Returns:
        16-bit states that were never stored, with which all else is compared; unrounded ones; the first row
        alone, which says what the prefix is worth; and each codec.
    """
    run = TextRun(model, trials)
    for start in range(0, len(texts), batch):
        run.take(texts[start : start + batch])
        on_batch(min(start + batch, len(texts)))
    return list(run.results.values())


class TextRun:
    """All codecs on text, batch after batch. `results` by name."""

    def __init__(self, model: LanguageModel, trials: Sequence[Trial]) -> None:
        self._model = model
        self._trials = trials
        self.results: dict[str, TextResult] = {}

    def take(self, batch: Sequence[Passage]) -> None:
        """Measure every codec on a few more passages, prefilled once."""
        exact = prefill_text(self._model, batch)
        states = in_16_bit(exact)
        in_memory = unstored(states)
        reference = self._predict(in_memory, batch)

        def record(name: str, loaded: Loaded) -> None:
            result = self.results.setdefault(name, TextResult(name))
            coded = self._predict(loaded, batch)
            result.surprise += [_surprise(rows, text.following) for rows, text in zip(coded, batch, strict=True)]
            result.agreement += [agreement(wanted, got) for wanted, got in zip(reference, coded, strict=True)]
            result.sizes += loaded.sizes
            result.values += [values_of(prefix) for prefix in in_memory.prefixes]

        record(IN_MEMORY, in_memory)
        record(UNROUNDED, unstored(exact))
        record(WITHOUT_PREFIX, _first_row_alone(in_memory.prefixes))
        for trial in self._trials:
            record(trial.name, store_and_load(states, trial.codec))

    def _predict(self, loaded: Loaded, batch: Sequence[Passage]) -> list[Tensor]:
        tails, following = [text.prefix[-1:] for text in batch], [text.following for text in batch]
        return predict(self._model.decoder, loaded.prefixes, tails, following)


def _is_prose(text: str) -> bool:
    return len(text) >= SHORTEST_PARAGRAPH and text[0].isupper() and text.endswith((".", ":"))


def _surprise(predictions: Tensor, following: Sequence[int]) -> list[float]:
    wanted = torch.tensor(following, device=predictions.device)
    return (-predictions.gather(1, wanted[:, None])[:, 0]).tolist()


def _first_row_alone(prefixes: Sequence[Prefix]) -> Loaded:
    """The rows of a prefix that are not coded: the first one, and the last one, which `predict` cuts off."""
    short = [replace(prefix, segments=tuple(_ends(segment) for segment in prefix.segments)) for prefix in prefixes]
    return Loaded(short, [prefix.kv_bytes for prefix in short])


def _ends(segment: Segment) -> Segment:
    rows = torch.tensor([*range(LEAD), segment.rows - 1], device=segment.keys.device)
    return replace(
        segment,
        keys=segment.keys[:, rows],
        values=segment.values[:, rows],
        position=segment.position[rows],
        text=segment.text[rows],
    )
