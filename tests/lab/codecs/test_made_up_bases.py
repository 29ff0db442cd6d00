"""A basis for the benchmark's states gives containers of the wanted size, on the CPU and the GPU alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kv.prefixes import restored
from trio_ray.errors import ConfigError
from trio_ray.estimate.made_up_states import GEOMETRIES, prefix_batch
from trio_ray.kv.batch import SegmentBatch
from trio_ray.kv.codecs.transform_basis import read_basis
from trio_ray.kv.encode import code_batch
from trio_ray.lab.codecs.made_up_bases import fit_transform, layers_together
from trio_ray.lab.codecs.recipes import Fit
from trio_ray.lab.codecs.speed import CodecBenchmark, container_sizes

CPU = torch.device("cpu")
SMALL = replace(GEOMETRIES["bundled"], kv_heads=2, least=60, most=120)
WIDE = replace(GEOMETRIES["mistral-7b"], kv_heads=16, layers=16, least=200, most=311)
"""Layers of more channels than the exact components are computed of."""

SPEC = {"name": "transform", "zstd": 1}


def test_containers_have_the_ratio_and_the_basis_is_a_readable_one() -> None:
    benchmark = CodecBenchmark.make(SMALL, 2, CPU, rounds=1)
    codec, basis = fit_transform(SPEC, Fit(ratio=6), SMALL, benchmark.longest_and_shortest)
    speed = benchmark.measure("transform", codec, basis)
    assert speed.to_pruned == pytest.approx(6, rel=0.05)
    assert speed.basis == len(basis)
    assert sum(group.layers for group in read_basis(basis).groups) == SMALL.layers
    assert speed.core_encode > 0
    assert speed.core_decode > 0


def test_no_measured_sample_is_in_the_calibration_set_but_all_are_of_one_model() -> None:
    """Means of channels are the model's, so that a basis fits samples that it never saw."""
    first, second = (prefix_batch(SMALL, 2, CPU, seed).segments[0].keys.float() for seed in (0, 1))
    assert not torch.equal(first, second)
    means = torch.stack([first.mean(1).flatten(), second.mean(1).flatten()])
    assert float(means.corrcoef()[0, 1]) > 0.9


def test_as_many_layers_are_together_as_leave_a_byte_a_component() -> None:
    """At 8x a layer of Vicuna-7B, 8,192 channels, takes all of 2,048 components, four of Mistral-7B likewise."""
    images = prefix_batch(SMALL, 2, CPU)
    many = replace(images, segments=tuple(replace(s, image_counts=(9999,)) for s in images.segments))
    layers = {name: layers_together(Fit(), GEOMETRIES[name], many) for name in ("vicuna-7b", "mistral-7b")}
    assert layers == {"vicuna-7b": 1, "mistral-7b": 4}
    assert layers_together(Fit(ratio=32), GEOMETRIES["vicuna-7b"], many) == 4
    assert layers_together(Fit(group_layers=3), GEOMETRIES["vicuna-7b"], many) == 3
    few_rows = min(sum(segment.image_counts) for segment in images.segments)
    assert layers_together(Fit(), SMALL, images) == max(1, 4 * few_rows // (SMALL.row_bytes(1) // 2))


@pytest.mark.parametrize(
    ("fit", "words"),
    [(Fit(ratio=900), "no step reaches ratio 900"), (Fit(rank=2, ratio=3), "higher rank")],
)  # fmt: skip
def test_a_ratio_out_of_reach_is_refused(fit: Fit, words: str) -> None:
    measured = prefix_batch(SMALL, 2, CPU)
    with pytest.raises(ConfigError, match=words):
        fit_transform(SPEC, fit, SMALL, measured)


@pytest.mark.gpu
@pytest.mark.parametrize(("layers", "ratio"), [(1, 32), (3, 64)])
def test_a_gpu_fits_a_basis_and_its_bytes_are_those_of_the_cpu(layers: int, ratio: float) -> None:
    """Rows and components that fill no tile; one layer or several together; iterated and exact components."""
    measured = prefix_batch(WIDE, 3, torch.device("cuda"))
    codec, _ = fit_transform(SPEC, Fit(rank=301, group_layers=layers, ratio=ratio), WIDE, measured)
    on_cpu = replace(
        measured,
        segments=tuple(_on_cpu(segment) for segment in measured.segments),
        kept=tuple(kept.cpu() for kept in measured.kept),
        top_ids=measured.top_ids.cpu(),
        top_logprobs=measured.top_logprobs.cpu(),
    )
    assert container_sizes(measured, codec) == container_sizes(on_cpu, codec)
    for ours, theirs in zip(code_batch(measured, codec).segments, code_batch(on_cpu, codec).segments, strict=True):
        assert torch.equal(ours.tensors["symbols"].cpu(), theirs.tensors["symbols"])


@pytest.mark.gpu
def test_the_gpu_decodes_what_the_cpu_decodes() -> None:
    """16-bit states come of half-precision products there."""
    measured = prefix_batch(WIDE, 2, torch.device("cuda"))
    codec, _ = fit_transform(SPEC, Fit(rank=301, ratio=32), WIDE, measured)
    coded = code_batch(measured, codec)
    for segment, shapes, batch in zip(coded.segments, coded.shapes, measured.segments, strict=True):
        frame = batch.position.cpu(), batch.text.cpu()
        found = restored(codec, segment.tensors, shapes, *frame)
        truth = restored(codec, {name: tensor.cpu() for name, tensor in segment.tensors.items()}, shapes, *frame)
        for ours, theirs in ((found.keys, truth.keys), (found.values, truth.values)):
            error = (ours.cpu().float() - theirs.float()).square().mean().sqrt()
            assert float(error) < 2**-9 * float(theirs.float().square().mean().sqrt())


def _on_cpu(segment: SegmentBatch) -> SegmentBatch:
    tensors = {name: getattr(segment, name).cpu() for name in ("keys", "values", "position", "text")}
    return replace(segment, **tensors)
