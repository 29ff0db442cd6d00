"""The conformance command: it passes what the authors' code (or plain autograd) produced, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.method.reference import reference_greedy, reference_prefill
from trio_ray.cli import main
from trio_ray.lab.conformance import check_vector

VECTORS = sorted((Path(__file__).parents[1] / "vectors").glob("*.safetensors"))


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_authors_vector_passes(path: Path) -> None:
    outcome = check_vector(path)
    assert outcome.ok, str(outcome)
    assert outcome.saliency_error < 1e-5
    assert outcome.logits_error < 1e-4


def test_command_prints_a_line_for_each_vector_and_exits_with_0() -> None:
    assert len(VECTORS) >= 3
    run = subprocess.run(
        [sys.executable, "-m", "trio_ray.cli", "lab", "conformance", str(VECTORS[0].parent)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert [line.split(":")[0] for line in run.stdout.splitlines()] == [f"pass {path.stem}" for path in VECTORS]


@dataclass(frozen=True)
class Case:
    """A prompt and a model that the vectors at hand do not cover."""

    before: int
    image: int
    after: int
    prune_points: tuple[int, ...]
    keep: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 4
    bias: bool = False
    loss_positions: int = 4
    threshold: float = 0.8
    alike: float = 0.0
    layers: int = 4
    head_dim: int | None = None


CASES = {
    "three_text_rows_after_the_image": Case(3, 30, 3, (1, 2), (12, 5)),
    "one_text_row_after_the_image": Case(4, 24, 1, (1, 3), (10, 4), kv_heads=2),
    "nothing_after_the_image": Case(4, 24, 0, (1,), (9,)),
    "image_first": Case(0, 28, 6, (1, 2), (11, 4)),
    "image_alone": Case(0, 20, 0, (2,), (6,), kv_heads=1),
    "keep_more_than_there_are": Case(2, 15, 7, (1, 2, 3), (40, 40, 5)),
    "keep_exactly_what_is_left": Case(2, 16, 7, (1, 2), (8, 8)),
    "keep_none": Case(2, 16, 7, (1, 2), (8, 0)),
    "prune_before_the_first_layer": Case(2, 20, 7, (0, 2), (9, 4)),
    "prune_before_the_last_layer": Case(2, 20, 7, (3,), (5,)),
    "one_supervised_row": Case(3, 26, 8, (1, 2), (10, 4), loss_positions=1),
    "nine_supervised_rows": Case(3, 26, 5, (1, 2), (10, 4), loss_positions=9),
    "low_threshold": Case(3, 40, 8, (1, 2), (15, 6), threshold=0.2),
    "high_threshold": Case(3, 40, 8, (1, 2), (15, 6), threshold=0.99, alike=3.0),
    "no_suppression": Case(3, 40, 8, (1, 2), (15, 6), threshold=1.5, alike=3.0),
    "everything_alike": Case(3, 40, 8, (1, 2), (15, 6), alike=6.0),
    "grouped_heads": Case(3, 30, 8, (1, 2), (12, 5), heads=6, kv_heads=2),
    "attention_biases": Case(3, 30, 8, (1, 2), (12, 5), bias=True, kv_heads=2),
    "wide_heads": Case(3, 30, 8, (1, 2), (12, 5), head_dim=24),
}


def write_vector(path: Path, case: Case, seed: int) -> None:
    """A vector file of the same format as the authors', made by autograd through whole layers and a greedy loop."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": case.layers, "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads, "vocab_size": 70, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    if case.head_dim:
        shape["head_dim"] = case.head_dim
    model = LlamaForCausalLM(LlamaConfig(**shape, attention_bias=case.bias)).eval()
    for name, parameter in model.named_parameters():
        mean = 1.0 if "norm" in name else 0.0
        torch.nn.init.normal_(parameter, mean, 0.3 if parameter.dim() == 1 else 1.4 / parameter.shape[-1] ** 0.5)
    model.requires_grad_(False)
    total = case.before + case.image + case.after
    embeds = torch.randn(total, 48) + case.alike * torch.randn(48)
    is_image = torch.zeros(total, dtype=torch.bool)
    is_image[case.before : case.before + case.image] = True
    supervised = range(-1 - case.loss_positions, -1)
    prefill = reference_prefill(
        model.model, model.lm_head, embeds, is_image, case.prune_points, case.keep, supervised, case.threshold
    )
    lengths = prefill.lengths
    tokens, logits = reference_greedy(model.model, model.lm_head, prefill, 5)
    description = {
        **shape, "rope_theta": 10000.0, "image_start": case.before, "image_len": case.image, "kv_lengths": lengths,
        "layer_list": case.prune_points, "image_token_list": case.keep, "greedy_tokens": tokens,
        "nms_threshold": case.threshold, "loss_positions": case.loss_positions,
    }  # fmt: skip
    tensors = {f"weights.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {"inputs_embeds": embeds[None], "logits": logits}
    for point, (saliency, kept) in enumerate(zip(prefill.saliency, prefill.kept, strict=True)):
        tensors |= {f"saliency.{point}": saliency, f"kept.{point}": torch.tensor(kept, dtype=torch.int64)}
    save_file(tensors, path, metadata={"case": json.dumps(description)})


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_vector_made_by_autograd_through_whole_layers_passes(name: str, seed: int, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.safetensors"
    write_vector(path, CASES[name], seed)
    outcome = check_vector(path)
    assert outcome.ok, str(outcome)
    assert outcome.saliency_error < 2e-5


def swap_kept(case: dict[str, object], tensors: dict[str, Tensor]) -> None:
    kept = tensors["kept.1"].clone()
    kept[0] = next(token for token in range(80) if token not in kept)
    tensors["kept.1"] = kept.sort().values


def shift_saliency(case: dict[str, object], tensors: dict[str, Tensor]) -> None:
    largest = tensors["saliency.0"].argmax()
    tensors["saliency.0"] = tensors["saliency.0"].clone()
    tensors["saliency.0"][largest] *= 1.001


def shift_logits(case: dict[str, object], tensors: dict[str, Tensor]) -> None:
    tensors["logits"] = tensors["logits"].clone()
    tensors["logits"][3, 7] -= 0.01


def other_token(case: dict[str, object], tensors: dict[str, Tensor]) -> None:
    tokens = list(case["greedy_tokens"])  # type: ignore[call-overload]
    case["greedy_tokens"] = [*tokens[:-1], (tokens[-1] + 1) % 160]


def lose_tensor(case: dict[str, object], tensors: dict[str, Tensor]) -> None:
    del tensors["kept.0"]


def lose_weight(case: dict[str, object], tensors: dict[str, Tensor]) -> None:
    del tensors["weights.model.layers.2.self_attn.k_proj.weight"]


def other_width(case: dict[str, object], tensors: dict[str, Tensor]) -> None:
    case["hidden_size"] = 32


def prune_point_too_deep(case: dict[str, object], tensors: dict[str, Tensor]) -> None:
    case["layer_list"] = [1, 99]


def lose_setting(case: dict[str, object], tensors: dict[str, Tensor]) -> None:
    del case["image_start"]


def nan_logits(case: dict[str, object], tensors: dict[str, Tensor]) -> None:
    tensors["logits"] = tensors["logits"].clone()
    tensors["logits"][0, 0] = float("nan")


def nan_saliency(case: dict[str, object], tensors: dict[str, Tensor]) -> None:
    tensors["saliency.0"] = torch.full_like(tensors["saliency.0"], float("nan"))


@pytest.mark.parametrize(
    "damage",
    [
        swap_kept, shift_saliency, shift_logits, other_token, lose_tensor, lose_weight, other_width,
        prune_point_too_deep, lose_setting, nan_logits, nan_saliency,
    ],
)  # fmt: skip
def test_changed_vector_fails_by_name_beside_a_good_one(
    damage: Callable[[dict[str, object], dict[str, Tensor]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = next(path for path in VECTORS if path.stem == "nms_exhausted")
    with safe_open(str(source), framework="pt") as file:
        case = json.loads(file.metadata()["case"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    damage(case, tensors)
    save_file(tensors, tmp_path / "changed.safetensors", metadata={"case": json.dumps(case)})
    shutil.copy(source, tmp_path / "good.safetensors")
    assert main(["lab", "conformance", str(tmp_path)]) == 1
    changed, good = capsys.readouterr().out.splitlines()
    assert changed.startswith("FAIL changed")
    assert good.startswith("pass good")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_unreadable_file_fails_by_name(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.safetensors").write_bytes(content)
    assert main(["lab", "conformance", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("FAIL broken")


def test_folder_without_vectors_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "conformance", str(tmp_path)]) == 2
    assert "no *.safetensors" in capsys.readouterr().err


def test_missing_folder_exits_with_2(tmp_path: Path) -> None:
    assert main(["lab", "conformance", str(tmp_path / "nowhere")]) == 2
