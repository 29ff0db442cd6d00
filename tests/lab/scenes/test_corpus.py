"""What is promised of written corpora: readable, repeatable, and broken exactly where the manifest says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import webdataset

from tests.source.corpus import LocalOpener
from trio_ray.config import SourceConfig
from trio_ray.lab.scenes import compose, make_questions, render_scene
from trio_ray.lab.scenes.corpus import CorpusManifest, write_corpus
from trio_ray.source.images import decode_image
from trio_ray.source.reader import SHARD_KEY, read_shard
from trio_ray.source.rejection import Rejected
from trio_ray.source.sample import BadSample, Reason
from trio_ray.source.shards import split_file


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> CorpusManifest:
    return write_corpus(tmp_path_factory.mktemp("broken"), scenes=10, samples_per_shard=24, broken=True)


def outcomes(manifest: CorpusManifest) -> tuple[list[str], list[tuple[str, Reason]]]:
    """Keys that this package's own source and decoder accept, and what they reject with which reason."""
    good: list[str] = []
    bad: list[tuple[str, Reason]] = []
    config, opener = SourceConfig(), LocalOpener()
    for path in manifest.shards:
        for shard in split_file(str(path), path.stat().st_size, "etag", config, opener):
            for item in read_shard(shard, config, opener):
                if isinstance(item, BadSample):
                    bad.append((item.key, item.reason))
                    continue
                try:
                    decode_image(item.images[0], config.max_pixels)
                    good.append(item.key)
                except Rejected as rejected:
                    bad.append((item.key, rejected.reason))
    return good, bad


def test_samples_hold_the_scenes_questions(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, scenes=5, samples_per_shard=8, seed=40, questions_per_image=3)
    samples = [s for path in manifest.shards for s in webdataset.WebDataset(str(path), shardshuffle=False)]
    assert [sample["__key__"] for sample in samples] == list(manifest.keys)
    assert len(manifest.shards) == 2
    assert manifest.defects == ()
    for index, sample in enumerate(samples):
        fields = json.loads(sample["json"])
        question = make_questions(compose(40 + index // 3, "test"), 3)[index % 3]
        assert (fields["question"], fields["answer"]) == (question.text, question.answer)
        assert (fields["seed"], fields["split"]) == (40 + index // 3, "test")
        assert (fields["type"], fields["fine"]) == (question.type, question.fine)


def test_questions_of_an_image_share_its_bytes(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, scenes=2, samples_per_shard=8, seed=1, questions_per_image=4)
    samples = list(webdataset.WebDataset(str(manifest.shards[0]), shardshuffle=False))
    assert len({sample["png"] for sample in samples[:4]}) == 1
    image = decode_image(samples[0]["png"], 10**6)
    assert image.tobytes() == render_scene(1, "test").image.tobytes()


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        write_corpus(tmp_path / name, scenes=4, samples_per_shard=10, broken=True, seed=3) for name in ("a", "b")
    )
    assert [path.read_bytes() for path in first.shards] == [path.read_bytes() for path in second.shards]
    assert (first.keys, first.defects) == (second.keys, second.defects)


def test_what_the_manifest_calls_readable_is_read(broken: CorpusManifest) -> None:
    good, _ = outcomes(broken)
    assert sorted(good) == sorted(broken.keys)


def test_every_defect_is_rejected_with_its_reason(broken: CorpusManifest) -> None:
    _, bad = outcomes(broken)
    wanted = [
        (SHARD_KEY if defect.kind == "truncated-shard" else defect.key, Reason(defect.reason))
        for defect in broken.defects
        if defect.reason is not None
    ]
    assert sorted(bad) == sorted(wanted)


def test_odd_but_sound_samples_are_among_the_readable(broken: CorpusManifest) -> None:
    sound = {defect.kind for defect in broken.defects if defect.key in broken.keys and defect.reason is None}
    assert sound == {"one-pixel", "ribbon-50-to-1", "cmyk", "exif-rotated"}


def test_a_rotated_image_reads_upright(broken: CorpusManifest) -> None:
    samples = {s["__key__"]: s for s in webdataset.WebDataset(str(broken.shards[0]), shardshuffle=False)}
    scene = compose(0, "test")
    assert decode_image(samples["odd-exif-rotated"]["jpg"], 10**6).shape[:2] == (scene.height, scene.width)
