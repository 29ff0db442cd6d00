"""What a notebook shows of a cache, of a sample and of a prefix."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.cache.caches import IDENTITY, write_cache
from trio_ray.cache import notebook
from trio_ray.cache.notebook import DROPPED, KEPT, cache_html, kept_map, sample_html
from trio_ray.method.schedule import Schedule
from trio_ray.model.patch_grid import PatchGrid

SCHEDULE = Schedule(32, (1, 10), retention=0.2, weights=(2.0, 1.0))
HOSTILE = "</td><script>alert(1)</script>"


def elements(html: str) -> list[str]:
    """Tags of what must be sound HTML."""
    return [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(f"<div>{html}</div>").iter()]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> notebook.Totals:
    """Sums of a small cache."""
    return write_cache(tmp_path_factory.mktemp("cache"), [[3, 2], [4]]).commits.totals


def test_a_cache_shows_its_sums_and_the_tokens_of_its_layers(samples: notebook.Totals) -> None:
    html = cache_html("PrunedCache('x')", samples, SCHEDULE, {"Model": HOSTILE})
    assert elements(html).count("rect") == 2 * 3
    assert "script" not in elements(html)
    assert "2,340.0 a sample, 11.1% of them held" in html
    assert "9, and 3 in quarantine" in html


def test_an_empty_cache_shows_its_sums_alone(tmp_path: Path) -> None:
    html = cache_html("x", write_cache(tmp_path, [[0]]).commits.totals, SCHEDULE, {})
    assert "svg" not in elements(html)


def test_a_sample_shows_a_map_for_each_prune_point(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, [[1]])
    (stored,) = cache.stream()
    html = stored._repr_html_()
    assert elements(html).count("img") == len(stored.row["kept"])
    assert elements(html).count("rect") == 2 * len(stored.prefix.segments)
    row = {**stored.row, "prompt": HOSTILE, "answer": None, "key": HOSTILE}
    assert "script" not in elements(sample_html(row, (1, 2), ""))
    assert cache.dataset.identity == IDENTITY


def test_a_map_has_a_square_for_each_token() -> None:
    grid = PatchGrid(4, (1, 2), (0, 4), (0, 8))
    kept = [0, 16, 16 + 8]
    png = re.sub(r"^data:image/png;base64,", "", kept_map(grid, kept))
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
    zoom = pixels.shape[0] // 4
    centres = pixels[zoom // 2 :: zoom, zoom // 2 :: zoom]
    assert ((centres == KEPT).all(-1).sum(), (centres == DROPPED).all(-1).sum()) == (3, grid.tokens - 3)
    assert tuple(centres[0, 0]) == tuple(centres[0, 5]) == tuple(centres[0, 13]) == KEPT
