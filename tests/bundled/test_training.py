"""What is promised of the training code: it trains the very model that is shipped, and can go on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaNextProcessor

from jobs.tiny import stream
from jobs.tiny.architecture import PAD, RECIPES, Recipe, build_processor
from jobs.tiny.checkpoint import MAX_FILE_BYTES, load_checkpoint, save_checkpoint
from jobs.tiny.examples import FIELDS, WEIGHTS, empty_examples, write_example
from jobs.tiny.export import export
from jobs.tiny.network import SharedImageTraining
from jobs.tiny.stream import SceneWindow, batch_shares, fixed_batches, render_examples
from jobs.tiny.training import Training, TrainingConfig, fitting_steps, learning_rate, scenes_shown
from trio_ray.lab.scenes import Family, Rendering, make_questions, render_scene

BATCH, CHUNK = 24, 96


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer scenes are rendered at once than in a real training; they suffice for a batch."""
    monkeypatch.setattr(stream, "CHUNK", CHUNK)


def batch_renderings(family: Family) -> list[Rendering]:
    """Scenes in the tile counts that a batch of BATCH is made of."""
    wanted = dict(batch_shares(BATCH))
    chosen: list[tuple[int, Rendering]] = []
    seed = 0
    while any(wanted.values()):
        rendering = render_scene(seed, "validation", family)
        seed += 1
        height, width = rendering.scene.view.grid
        tiles = 1 + (height // 112) * (width // 112)
        if wanted[tiles]:
            wanted[tiles] -= 1
            chosen.append((tiles, rendering))
    return [rendering for _, rendering in sorted(chosen, key=lambda pair: pair[0])]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_shared_image_gives_the_logits_of_each_question_alone(recipe: Recipe) -> None:
    """Training packs dozens of questions behind one image; the trained model must see the same numbers for each."""
    network, processor = SharedImageTraining(recipe, seed=1), build_processor(recipe.family)
    model = network.model
    renderings = batch_renderings(recipe.family)
    examples = empty_examples(BATCH)
    for row, rendering in enumerate(renderings):
        write_example(examples, row, rendering)
    arrays = {name: torch.from_numpy(values) for name, values in examples.items()}
    with torch.no_grad():
        packed = network(arrays, torch.arange(BATCH)).logits
    model.set_attn_implementation("sdpa")
    for row in range(0, BATCH, 4):
        alone = _alone(processor, renderings[row], number=row % 5)
        in_pack = (arrays["segments"][row] == 1 + row % 5) & (arrays["targets"][row] != PAD)
        with torch.no_grad():
            wanted = model(**alone).logits[0, -1]
        torch.testing.assert_close(packed[row, in_pack.nonzero()[0, 0]], wanted, atol=1e-5, rtol=0)


def _alone(processor: LlavaNextProcessor, rendering: Rendering, number: int) -> dict[str, torch.Tensor]:
    question = make_questions(rendering.scene, 48, weights=WEIGHTS)[number]
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=rendering.image, text=prompt, return_tensors="pt")


def test_patch_labels_name_what_the_tiles_show() -> None:
    """Every object that is large in a tile labels some patch of that scene's tiles."""
    rendering = render_scene(3, "validation")
    examples = empty_examples(1)
    write_example(examples, 0, rendering)
    labels = examples["labels"][0, 1 : examples["tile_count"][0]].reshape(-1, 3)
    seen = {tuple(label) for label in labels.tolist()} - {(0, 0, 0)}
    assert len(seen) == len(rendering.scene.objects) + len(rendering.scene.tags)


@pytest.mark.usefixtures("small_chunks")
def test_the_window_shows_the_same_scenes_however_it_was_reached() -> None:
    """A resumed run must draw from the scenes that an uninterrupted one would have."""
    going, resumed = (SceneWindow("shapes", CHUNK, 2, torch.device("cpu"), shown) for shown in (0, CHUNK))
    try:
        going.advance(0)
        before = going.arrays["ids"].clone()
        going.advance(CHUNK)
        resumed.advance(CHUNK)
        for name in FIELDS:
            assert torch.equal(going.arrays[name], resumed.arrays[name]), name
        assert not torch.equal(going.arrays["ids"], before)
        rows = going.draw(BATCH, np.random.default_rng(0))
        counts = going.arrays["tile_count"][rows]
        assert counts.tolist() == [tiles for tiles, count in batch_shares(BATCH) for _ in range(count)]
    finally:
        going.close()
        resumed.close()


def test_fixed_batches_are_disjoint_and_alike() -> None:
    tile_counts = torch.tensor([3, 4, 5, 5] * 40)
    batches = fixed_batches(tile_counts, BATCH)
    assert len(batches) == 5
    assert len(set(torch.cat(batches).tolist())) == 5 * BATCH
    for rows in batches:
        assert tile_counts[rows].tolist() == tile_counts[batches[0]].tolist()


def test_a_checkpoint_restores_weights_and_second_moments(tmp_path: Path) -> None:
    """In files small enough to move about one by one."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.Linear(2048, 8))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 2048)).square().sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, network, optimizer, step=7, recipe="bundled")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert all(path.stat().st_size < MAX_FILE_BYTES + 4096 for path in files)
    other = torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.Linear(2048, 8))
    restored = torch.optim.AdamW(other.parameters())
    assert load_checkpoint(tmp_path, other, restored) == 7
    for mine, theirs in zip(other.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-7)
        moments = restored.state[mine]["exp_avg_sq"], optimizer.state[theirs]["exp_avg_sq"]
        torch.testing.assert_close(*moments, rtol=1e-2, atol=1e-12)


def test_the_rate_warms_up_twice_and_ends_low() -> None:
    config = TrainingConfig(vision_steps=1000, steps=2500, warmup_steps=200)
    rates = [learning_rate(config, step) for step in range(3500)]
    assert max(rates) == config.learning_rate
    assert rates[0] == rates[1000] == pytest.approx(config.learning_rate / 200)
    assert rates[199] == rates[999] == rates[1199] == config.learning_rate
    assert rates[1200:] == sorted(rates[1200:], reverse=True)
    assert rates[-1] == pytest.approx(config.final_learning_rate, rel=0.01)


def test_the_window_slides_on_with_the_steps() -> None:
    config = TrainingConfig(vision_steps=10, vision_scenes_per_step=32, scenes_per_step=160)
    assert [scenes_shown(config, step) for step in (0, 10, 12)] == [0, 320, 640]


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vision alone, then all of it, in two runs; the last step is followed by a report of every type."""
    batch, chunk = 6, 24
    monkeypatch.setattr(stream, "TILE_SHARES", dict.fromkeys(stream.TILE_SHARES, 1))
    monkeypatch.setattr(stream, "CHUNK", chunk)
    config = TrainingConfig(
        vision_steps=1,
        steps=1,
        batch=batch,
        warmup_steps=1,
        window=chunk,
        workers=2,
        validation_scenes=chunk,
        report_every=1,
        vision_scenes_per_step=0,
        scenes_per_step=0,
    )
    cpu = torch.device("cpu")
    Training(config, tmp_path, cpu, resume=None).run(max_seconds=0)
    assert '"event": "stop", "step": 0' in (tmp_path / "curves.jsonl").read_text(encoding="utf-8")
    resumed = Training(config, tmp_path, cpu, resume=tmp_path / "checkpoint")
    resumed.run(max_seconds=1e9)
    assert resumed.step == 2
    export(tmp_path / "checkpoint", tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["text_config"]["num_hidden_layers"] == 16
    assert "relation" in (tmp_path / "curves.jsonl").read_text(encoding="utf-8").splitlines()[-2]


def test_scenes_can_be_rendered_at_once() -> None:
    arrays = render_examples("shapes", "validation", 40, workers=2)
    assert {name: values.shape[0] for name, values in arrays.items()} == dict.fromkeys(FIELDS, 40)
    assert set(arrays["tile_count"].tolist()) == {3, 4, 5}


def test_a_schedule_that_would_not_end_in_time_is_shortened_to_its_end() -> None:
    """The rate must reach its lowest value; a run that is cut off at a high rate answers badly."""
    config = TrainingConfig(warmup_steps=200, steps=2500)
    assert 1000 < fitting_steps(config, pace=0.1, seconds=100.0) < 1200
    assert fitting_steps(config, pace=0.01, seconds=100.0) == 2500
