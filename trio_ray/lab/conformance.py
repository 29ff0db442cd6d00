"""Hold this implementation against vectors made with the authors' code.

A vector is a safetensors file with a small Llama model's weights (`weights.*`), a prompt's embeddings, and what the
authors' code did with
them: saliency and kept indices per prune point, and the logits of each greedy step (tests/vectors/README.md).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from trio_ray.errors import TrioRayError
from trio_ray.method.method import Method
from trio_ray.method.rows import PackedRows
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.attention import packed_attention
from trio_ray.model.continuation import Continuation
from trio_ray.model.decoder import Decoder, freeze
from trio_ray.model.prefill import pruned_prefill

SALIENCY_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Outcome:
    """How one vector file compared."""

    name: str
    kept_equal: bool
    saliency_error: float
    logits_error: float
    tokens_equal: bool

    @property
    def ok(self) -> bool:
        """Whether all four comparisons hold."""
        return (
            self.kept_equal
            and self.tokens_equal
            and self.saliency_error <= SALIENCY_TOLERANCE
            and self.logits_error <= LOGITS_TOLERANCE
        )

    def __str__(self) -> str:
        kept = "equal" if self.kept_equal else "DIFFER"
        tokens = "equal" if self.tokens_equal else "DIFFER"
        return (
            f"{'pass' if self.ok else 'FAIL'} {self.name}: kept indices {kept}, "
            f"saliency within {self.saliency_error:.1e} relative, "
            f"logits within {self.logits_error:.1e}, greedy tokens {tokens}"
        )


class BadVector(TrioRayError):
    """The file is not a vector in the known format."""


def check_vector(path: Path) -> Outcome:
    """Compare one vector file. Raises `BadVector` if it cannot be read as a vector."""
    case, tensors = _load(path)
    try:
        return _compare(path.stem, case, tensors)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        detail = " ".join(f"{type(error).__name__} {error}".split())  # torch writes several lines, we print one
        raise BadVector(f"{path}: its settings and tensors do not fit: {detail}") from error


def _compare(name: str, case: dict[str, Any], tensors: dict[str, Tensor]) -> Outcome:
    model = _build_model(case, tensors)
    decoder = Decoder.of(model.model, model.lm_head)
    embeds = tensors["inputs_embeds"][0]
    mask = torch.zeros(len(embeds), dtype=torch.bool)
    mask[case["image_start"] : case["image_start"] + case["image_len"]] = True
    schedule = Schedule(
        layers=decoder.depth, prune_points=tuple(case["layer_list"]), keep=tuple(case["image_token_list"])
    )
    supervised = tuple(range(-1 - case.get("loss_positions", 4), -1))
    selector = Trio(threshold=case.get("nms_threshold", 0.8), supervised_rows=supervised)
    rows = PackedRows.pack([mask], embeds.device)
    budgets = [schedule.counts(case["image_len"])]
    method = Method(schedule, selector)
    prefill = pruned_prefill(decoder, embeds, rows, method, budgets, packed_attention("sdpa"))
    (prefix,) = prefill.prefixes(top_k=1).split()

    tokens: list[int] = case["greedy_tokens"]
    decoding = Continuation(decoder, [prefix], room=len(tokens))
    logits = [prefill.logits]
    for token in tokens:
        logits.append(decoding.extend([[token]]))
    steps = torch.cat(logits)[: len(tensors["logits"])]
    return Outcome(
        name=name,
        kept_equal=all(
            torch.equal(kept.long(), tensors[f"kept.{point}"].long().sort().values)
            for point, kept in enumerate(prefix.kept)
        ),
        saliency_error=_saliency_error(prefill, rows, tensors, prefix.kept),
        logits_error=float((steps - tensors["logits"]).abs().max()),
        tokens_equal=steps.argmax(-1)[: len(tokens)].tolist() == tokens,
    )


def _saliency_error(prefill: Any, rows: PackedRows, tensors: dict[str, Tensor], kept: tuple[Tensor, ...]) -> float:
    """Largest relative difference over all tokens and prune points; a token far below the largest counts as a
    thousandth of it.
    """
    errors = [0.0]
    layouts = [rows, *prefill.left]
    for point in range(len(kept)):
        truth = tensors[f"saliency.{point}"]
        ours = prefill.scores[point]
        if ours is None:
            continue
        ours = ours[layouts[point].is_image]
        if ours.shape != truth.shape:
            return math.inf
        errors.append(float(((ours - truth).abs() / truth.abs().clamp_min(1e-3 * truth.abs().max())).max()))
    # Not Python's max, which passes over a NaN.
    return float(torch.tensor(errors).max())


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return json.loads(file.metadata()["case"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise BadVector(f"{path}: not a vector file: {error}") from error


def _build_model(case: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    prefix = "weights."
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    known = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "rms_norm_eps", "head_dim", "hidden_act",
    )  # fmt: skip
    config = LlamaConfig(
        **{name: case[name] for name in known if name in case},
        rope_parameters={"rope_type": "default", "rope_theta": case.get("rope_theta", 10000.0)},
        max_position_embeddings=max(case.get("max_position_embeddings", 0), 65536),
        attention_bias="model.layers.0.self_attn.q_proj.bias" in weights,
        mlp_bias="model.layers.0.mlp.up_proj.bias" in weights,
        tie_word_embeddings="lm_head.weight" not in weights,
    )
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise BadVector(f"weights do not fit the model: missing {missing}, unexpected {unexpected}")
    return freeze(model)
