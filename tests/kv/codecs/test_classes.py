"""Protected rows: all text, and the image rows that begin within the first few rows of the prompt."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.kv.prefixes import LEAD, batch_of, codec_of, contained, random_prefix
from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.codecs.classes import split_rows
from trio_ray.kv.restore import read_container


@pytest.mark.parametrize("sinks", [0, LEAD, LEAD + 1, LEAD + 4, 100])
def test_rows_are_split_by_text_and_sinks(sinks: int) -> None:
    prefixes = [random_prefix(rows=(rows,), layers=(1,)) for rows in (30, 8, 12)]
    batch = batch_of([prefix.segments[0] for prefix in prefixes])
    images, protected = split_rows(batch.text, SegmentShape.of(batch), sinks)
    wanted_images, wanted_protected = [], []
    for start, prefix in zip((0, 30, 38), prefixes, strict=True):
        for row, is_text in enumerate(prefix.segments[0].text.tolist()):
            (wanted_protected if is_text or row < sinks else wanted_images).append(start + row)
    assert images.rows.tolist() == wanted_images
    assert protected.rows.tolist() == wanted_protected
    assert sum(images.counts) == len(wanted_images)
    assert [a + b for a, b in zip(images.counts, protected.counts, strict=True)] == [30, 8, 12]


def test_protected_rows_keep_what_the_spec_promises() -> None:
    """`raw` rows come back bit for bit, and eight bits beat two."""
    prefix = random_prefix(rows=(60,), layers=(2,))
    text = prefix.segments[0].text
    errors = {}
    for protected in ("raw", 8, 2):
        codec = codec_of({"name": "int2", "protected": protected, "sinks": LEAD + 1})
        back = read_container(contained(prefix, codec), codec).segments[0]
        moved = (back.keys - prefix.segments[0].keys).abs().amax((0, 2, 3))
        errors[protected] = moved[text].max()
        assert (moved[LEAD] == 0) == (protected == "raw")
        assert moved[LEAD + 1 :][~text[LEAD + 1 :]].max() > 0.1
    assert errors["raw"] == 0
    assert errors[8] < errors[2] / 10


NO_THREAD = """
import os
import numpy as np, torch
from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.codecs.classes import split_rows
from trio_ray.kv.codecs.quantise import RowGroups

torch.set_num_threads(4)
own = np.ones(2500, bool)
own[3:2490] = False
text = torch.from_numpy(np.tile(own, 16))
shapes = [SegmentShape(0, 2, len(own), 2487, 3, 2, 16, torch.float32)] * 16
tasks = lambda: len(os.listdir("/proc/self/task"))
before = tasks()
images, protected = split_rows(text, shapes, 5)
RowGroups.of(images, 128).put_into(np.arange(len(text)))
print(tasks() - before)
text.logical_not()
print(tasks() - before)
"""


def test_no_thread_of_torch_looks_at_the_rows_of_a_batch() -> None:
    """Torch uses all of its threads from 32,768 elements on, and they keep cores busy for a while afterwards. On 32
    cores that halved the samples of int4 that were restored a second.
    """
    done = subprocess.run(
        [sys.executable, "-c", NO_THREAD],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    ours, torchs = map(int, done.stdout.split())
    assert ours == 0
    assert torchs > 0, "or this would hold for anything"
