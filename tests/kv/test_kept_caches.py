"""Caches that earlier versions wrote are still read, and give the numbers they gave then."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.kv.make_kept_caches import EXPECTED, FOLDER, TRANSFORM, tensors_of
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.kv.codecs.registry import codec_types
from trio_ray.store.local import LocalStore
from trio_ray.store.verify import verify

KEPT = sorted(folder.name for folder in FOLDER.iterdir())


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_cache_gives_the_numbers_it_gave_when_it_was_made(name: str) -> None:
    expected = load_file(str(FOLDER / name / EXPECTED))
    found: dict[str, torch.Tensor] = {}
    for item in PrunedCache(str(FOLDER / name / "cache")).stream():
        found |= tensors_of(item.prefix, item.row["key"])
    assert found.keys() == expected.keys()
    for tensor, truth in expected.items():
        assert found[tensor].dtype == truth.dtype
        if name == TRANSFORM and tensor.endswith(("keys", "values")):
            # Its symbols are exact; what they mean is a product in floats, which machines may sum in another order.
            torch.testing.assert_close(found[tensor], truth, atol=1e-2, rtol=1e-2)
        else:
            assert torch.equal(found[tensor].view(torch.uint8), truth.view(torch.uint8)), tensor


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_cache_is_sound_and_small(name: str) -> None:
    assert verify(LocalStore(FOLDER / name / "cache"), threads=1).findings == []
    assert sum(file.stat().st_size for file in (FOLDER / name).rglob("*") if file.is_file()) < 60_000


def test_every_codec_has_a_kept_cache() -> None:
    stored = {PrunedCache(str(FOLDER / name / "cache")).codec.settings.name for name in KEPT}
    assert stored == set(codec_types())
