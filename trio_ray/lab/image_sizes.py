"""How large the images of real corpora are."""

from __future__ import annotations

import numpy as np

COCO_COUNTS = {
    (480, 640): 9, (427, 640): 7, (426, 640): 5, (428, 640): 3, (425, 640): 1, (429, 640): 1, (424, 640): 1,
    (444, 640): 1, (368, 640): 1, (640, 428): 2, (640, 426): 2, (640, 425): 1, (640, 478): 1, (640, 358): 1,
    (375, 500): 2, (357, 500): 1, (332, 500): 1, (486, 500): 1,
}  # fmt: skip
"""(height, width) in pixels -> how many of 41 images of COCO val2017 have it, by its annotation file. POPE asks about
such images.
"""

WEB_SHAPES = {
    1.0: 0.2, 4 / 3: 0.2, 3 / 4: 0.1, 3 / 2: 0.2, 2 / 3: 0.12, 16 / 9: 0.1, 9 / 16: 0.03, 2.0: 0.03, 3.0: 0.01,
    0.5: 0.01,
}  # fmt: skip
"""Width / height -> share. An assumption, not a count: the shapes of cameras, screens, banners and product pictures."""

WEB_SHORT_SIDE, WEB_SPREAD, WEB_RANGE = 512, 0.5, (96, 1024)
"""Median, in pixels, and standard deviation of the logarithm of an image's shorter side; its range. An assumption too;
1,024 is where img2dataset's `--image_size 1024 --resize_mode keep_ratio --resize_only_if_bigger` stops.
"""


def draw_size(kind: str, random: np.random.Generator) -> tuple[int, int]:
    """(height, width) in pixels of one image of a `pope` or `web` corpus."""
    if kind == "pope":
        sizes = [size for size, count in COCO_COUNTS.items() for _ in range(count)]
        return sizes[random.integers(len(sizes))]
    shape = random.choice(list(WEB_SHAPES), p=list(WEB_SHAPES.values()))
    short = float(np.clip(WEB_SHORT_SIDE * np.exp(WEB_SPREAD * random.standard_normal()), *WEB_RANGE))
    return round(short * max(1.0, 1 / shape)), round(short * max(1.0, shape))
