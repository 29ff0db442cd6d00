"""Models drawn on the device: the same each time, whole in every buffer, and fit to run a job."""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import LlavaNextForConditionalGeneration

from tests.model.corpus import picture, png
from trio_ray.config import ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.loading import (
    BUNDLED_FOLDER,
    load_model,
    load_processor,
    model_fingerprint,
    read_model_config,
    stored_files,
)
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.random_weights import RANDOM_WEIGHTS_FILE
from trio_ray.model.replica import Replica
from trio_ray.model.shapes import SHAPES, write_model
from trio_ray.source.sample import Sample, Turn

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the tiny shapes."""
    return write_model(tmp_path / "tiny", "tiny")


def samples(replica: Replica, sizes: list[tuple[int, int]]) -> list[PreparedSample]:
    """One question about a picture of each size."""
    preparer = replica.preparer(10**8)
    turns = (Turn("user", "What is the color of the circle?"),)
    prepared = [preparer.prepare(Sample(str(n), n, (png(picture(*size, n)),), turns)) for n, size in enumerate(sizes)]
    assert all(isinstance(sample, PreparedSample) for sample in prepared)
    return prepared  # type: ignore[return-value]


def test_two_loads_have_equal_weights_and_leave_the_global_generator_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    first = load_model(folder, torch.float32, CPU).state_dict()
    torch.manual_seed(12345)
    second = load_model(folder, torch.float32, CPU).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.set_rng_state(state)
    load_model(folder, torch.float32, CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_weights_are_the_same_ones_rounded(folder: Path) -> None:
    wide = load_model(folder, torch.float32, CPU).state_dict()
    half = load_model(folder, torch.bfloat16, CPU)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert all(torch.equal(value, wide[name].to(torch.bfloat16)) for name, value in half.state_dict().items())


def test_another_seed_gives_other_weights_and_another_fingerprint(folder: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", "tiny", seed=1)
    a, b = (load_model(path, torch.float32, CPU).lm_head.weight for path in (folder, other))
    assert not torch.equal(a, b)
    before, after = model_fingerprint(folder), model_fingerprint(other)
    assert {name for name in before if before[name] != after[name]} == {"weights"}


def test_buffers_that_no_file_holds_are_those_of_a_stored_model(folder: Path) -> None:
    """Rotary tables and position numbers, in bfloat16 too: a wrong one would show in no weight."""
    drawn = load_model(folder, torch.bfloat16, CPU)
    stored = LlavaNextForConditionalGeneration.from_pretrained(BUNDLED_FOLDER, dtype=torch.bfloat16)
    buffers = dict(drawn.named_buffers())
    assert buffers.keys() == dict(stored.named_buffers()).keys()
    for name, buffer in stored.named_buffers():
        assert buffers[name].dtype == buffer.dtype
        assert torch.equal(buffers[name], buffer)
    assert any("inv_freq" in name for name in buffers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replica_prefills_with_finite_and_varied_results(folder: Path, dtype: str) -> None:
    """As a job would: finite logits that differ from sample to sample, finite scores that tell tokens apart."""
    replica = Replica.load(ModelConfig(name=str(folder), dtype=dtype), device=CPU)
    prefixes = replica.prefill(
        samples(replica, [(224, 224), (112, 300), (300, 100), (90, 90)]),
        Method(Schedule(16, (1, 5, 8), retention=0.2), Trio()),
        top_k=128,
    ).prefixes
    assert all(prefix.top_logprobs.isfinite().all() for prefix in prefixes)
    assert len({tuple(prefix.top_ids[:8].tolist()) for prefix in prefixes}) == 4
    assert all(prefix.top_logprobs[0].exp() < 0.9 for prefix in prefixes), "a certain answer has no gradient"
    assert all(tensor.isfinite().all() for p in prefixes for s in p.segments for tensor in (s.keys, s.values))
    assert len({tuple(prefix.kept[0].tolist()) for prefix in prefixes}) == 4
    assert replica.stop_tokens == (2,)


def test_attention_is_neither_flat_nor_stuck_and_tokens_are_not_alike(folder: Path) -> None:
    """The last row spreads over more than a few of its keys and not over all alike; few tokens suppress each other."""
    replica = Replica.load(ModelConfig(name=str(folder), dtype="float32"), device=CPU)
    model: Any = replica.model
    model.set_attn_implementation("eager")
    hidden, rows = replica.embed(samples(replica, [(224, 224)]))
    causal = torch.full((rows.total, rows.total), float("-inf")).triu(1)[None, None]
    output = model.model.language_model(
        inputs_embeds=hidden[None], attention_mask=causal, output_attentions=True, output_hidden_states=True
    )
    for probs, states in zip(output.attentions, output.hidden_states, strict=False):
        last = probs[0, :, -1]
        spread = float((-(last * last.log())).sum(-1).exp().mean())
        assert 3 < spread < 0.9 * rows.total
        images = F.normalize(states[0, rows.image_rows], dim=-1)
        suppressed = (images @ images.T >= 0.8).triu(1).any(0).float().mean()
        assert suppressed < 0.8


@pytest.mark.parametrize("shapes", SHAPES)
def test_configuration_processor_and_tokenizer_agree(shapes: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / shapes, shapes)
    config = read_model_config(folder)
    processor, images = load_processor(folder)
    assert config.image_token_id == processor.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert len(processor.tokenizer) <= config.text_config.vocab_size
    assert config.image_grid_pinpoints == [list(point) for point in images.image_grid_pinpoints]
    assert images.crop_size["height"] == config.vision_config.image_size
    assert processor.patch_size == config.vision_config.patch_size
    assert processor.tokenizer.model_max_length == config.text_config.max_position_embeddings
    assert config.text_config.eos_token_id == processor.tokenizer.eos_token_id
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20_000


def test_the_7b_shapes_are_those_of_the_published_models(tmp_path: Path) -> None:
    """Parameters of vicuna-7b and mistral-7b, counted without making one: 7.06 and 7.57 billion."""
    for shapes, billions, window, context in (("vicuna-7b", 7.06, None, 4096), ("mistral-7b", 7.57, None, 32768)):
        config = read_model_config(write_model(tmp_path / shapes, shapes))
        with torch.device("meta"):
            model = LlavaNextForConditionalGeneration(config)
        assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(billions * 1e9, rel=2e-3)
        assert getattr(config.text_config, "sliding_window", None) is window
        assert config.text_config.max_position_embeddings == context


@pytest.mark.gpu
@pytest.mark.parametrize("shapes", ["vicuna-7b", "mistral-7b"])
def test_seven_billion_weights_are_there_in_seconds_and_never_on_the_host(shapes: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, shapes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    replica = Replica.load(ModelConfig(name=str(folder), dtype="bfloat16"))
    torch.cuda.synchronize()
    assert time.monotonic() - started < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4e6, "kilobytes on the host"
    (prefix,) = replica.prefill(
        samples(replica, [(480, 640)]), Method(Schedule(32, (1, 10, 15), retention=0.111), Trio()), top_k=64
    ).prefixes
    assert prefix.top_logprobs.isfinite().all()
    assert all(tensor.isfinite().all() for s in prefix.segments for tensor in (s.keys, s.values))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"seed": "1"}', '{"seed": 1, "scale": 2}', '{"seed": true}'])
def test_a_malformed_file_is_refused_before_anything_is_made(content: str, folder: Path) -> None:
    (folder / RANDOM_WEIGHTS_FILE).write_text(content)
    with pytest.raises(ConfigError, match=RANDOM_WEIGHTS_FILE) as caught:
        stored_files(folder)
    assert caught.value.field == "model.name"


def test_a_folder_with_weights_and_a_seed_is_refused(folder: Path) -> None:
    shutil.copy(BUNDLED_FOLDER / "model.safetensors", folder)
    with pytest.raises(ConfigError, match="both"):
        stored_files(folder)


def test_unknown_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_model(tmp_path / "x", "vicuna-13b")
    assert json.loads((write_model(tmp_path / "y", "tiny", 7) / RANDOM_WEIGHTS_FILE).read_text()) == {"seed": 7}
