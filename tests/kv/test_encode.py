"""From a batch to the samples' coded prefixes: the first segment may be reduced, copies go where the caller wants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kv.prefixes import LEAD, TAIL, TEXTS, assert_same, code, codec_of, contained, random_prefix
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.encode import code_batch
from trio_ray.kv.restore import read_container

KEPT = codec_of({"name": "raw", "first_segment": "kept"})


def test_the_first_segment_holds_what_the_first_prune_point_keeps() -> None:
    prefix = random_prefix(rows=(30, 17, 9))
    back = read_container(contained(prefix, KEPT), KEPT)
    rows = torch.cat([torch.arange(LEAD), prefix.kept[0] + LEAD, torch.arange(30 - TAIL, 30)])
    first, whole = back.segments[0], prefix.segments[0]
    assert torch.equal(first.keys, whole.keys[:, rows])
    assert torch.equal(first.values, whole.values[:, rows])
    assert torch.equal(first.position, whole.position[rows])
    assert torch.equal(first.text, whole.text[rows])
    for ours, truth in zip(back.segments[1:], prefix.segments[1:], strict=True):
        assert torch.equal(ours.keys, truth.keys)
    assert back.length == prefix.length


def test_samples_of_a_batch_are_reduced_each_by_its_own_indices() -> None:
    prefixes = [random_prefix(rows=rows, seed=seed) for seed, rows in enumerate([(30, 17, 9), (50, 8, 8), (20, 20, 9)])]
    for prefix, coded in zip(prefixes, code_batch(PrefixBatch.of(prefixes), KEPT).split(), strict=True):
        assert coded.shapes == code(prefix, KEPT).shapes
        assert coded.shapes[0].rows == prefix.segments[1].rows
        assert torch.equal(coded.segments[0]["k"], code(prefix, KEPT).segments[0]["k"])


def test_a_prefix_that_lost_all_image_rows_begins_with_text_alone() -> None:
    shape = code(random_prefix(rows=(30, TEXTS, TEXTS)), KEPT).shapes[0]
    assert (shape.rows, shape.images, shape.lead) == (TEXTS, 0, TEXTS)


@pytest.mark.parametrize("rows", [(30,), (30, 30)], ids=["no prune point", "nothing dropped"])
def test_where_nothing_was_dropped_nothing_is_left_out(rows: tuple[int, ...]) -> None:
    prefix = random_prefix(rows=rows, layers=(2,) * len(rows))
    assert_same(read_container(contained(prefix, KEPT), KEPT), prefix)


def test_a_pruned_first_segment_stays_as_it_is() -> None:
    """With a prune point before layer 0 the first segment holds only what that kept."""
    whole = random_prefix(rows=(30, 17, 9))
    batch = PrefixBatch.of([whole])
    pruned = PrefixBatch(
        batch.lengths, batch.segments[1:], batch.kept, batch.kept_counts, batch.top_ids, batch.top_logprobs
    )
    assert [shape.rows for shape in code_batch(pruned, KEPT).split()[0].shapes] == [17, 9]


def test_every_tensor_is_copied_once_into_memory_of_the_callers() -> None:
    batch = code_batch(PrefixBatch.of([random_prefix(), random_prefix(seed=1)]), codec_of("int4"))
    given: list[Tensor] = []

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        given.append(torch.empty(shape, dtype=dtype))
        return given[-1]

    for ours, truth in zip(batch.on_host(allocate).split(), batch.split(), strict=True):
        tensors = [t for segment in ours.segments for t in segment.values()]
        tensors += [*ours.positions, *ours.texts, *ours.kept, ours.top_ids, ours.top_logprobs]
        storages = {tensor.untyped_storage().data_ptr() for tensor in given}
        assert all(tensor.untyped_storage().data_ptr() in storages for tensor in tensors if tensor.numel())
        for a, b in zip(ours.segments, truth.segments, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in b)
        assert ours.shapes == truth.shapes
        assert torch.equal(ours.top_ids, truth.top_ids)
