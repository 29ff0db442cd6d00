"""One real job over a folder of faulty inputs: everything is counted by its reason, and nothing looks like a crash."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from tests.corpora import noise, tar_bytes, write_tar
from tests.corpora import samples as sound_samples
from tests.precompute.ray_cluster import REPOSITORY
from tests.precompute.runs import account
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.store.local import LocalStore

pytestmark = pytest.mark.slow

PNG = noise(1)
Q = b'{"question": "what ?"}'
TALK = [{"from": "human", "value": "q"}, {"from": "human", "value": "r"}]

MEMBERS: list[tuple[list[tuple[str, bytes]], list[str]]] = [
    ([("cut.png", PNG[:200]), ("cut.json", Q)], ["image_corrupt"]),
    ([("html.jpg", b"<html>404"), ("html.json", Q)], ["image_corrupt"]),
    ([("empty.png", b""), ("empty.json", Q)], ["image_empty"]),
    ([("none.json", b'{"question": "<image> what ?"}')], ["image_missing"]),
    ([("alone.json", Q)], ["text_only"]),
    ([("mute.png", PNG)], ["text_missing"]),
    ([("fields.png", PNG), ("fields.json", b'{"ask": "what ?"}')], ["text_missing"]),
    ([("blank.png", PNG), ("blank.txt", b" \n")], ["text_empty"]),
    ([("void.png", PNG), ("void.json", b"")], ["text_empty"]),
    ([("latin.png", PNG), ("latin.txt", b"caf\xe9")], ["text_not_utf8"]),
    ([("half.png", PNG), ("half.json", b'{"question": "half \\ud83d"}')], ["text_not_utf8"]),
    ([("json.png", PNG), ("json.json", b'{"question": ')], ["text_malformed"]),
    ([("list.png", PNG), ("list.json", b"[1]")], ["text_malformed"]),
    ([("talk.png", PNG), ("talk.json", b'{"conversations": "[{from: human}]"}')], ["text_malformed"]),
    ([("roles.png", PNG), ("roles.json", json.dumps({"conversations": TALK}).encode())], ["text_malformed"]),
    ([("count.png", PNG), ("count.txt", b"<image> or <image> ?")], ["image_count"]),
    ([("long.png", PNG), ("long.txt", b"red " * 3000)], ["prompt_too_long"]),
    ([("README", b"about this tar")], ["member_stray"]),
    ([("stats.csv", b"1,2")], ["member_stray"]),
    ([("two.png", PNG), ("two.jpg", PNG), ("two.json", Q)], ["members_unclear"]),
    ([("v1.0.png", PNG), ("v1.0.json", Q), ("v1.2.png", PNG), ("v1.2.json", Q)], ["members_unclear"]),
    (
        [("apart.png", PNG), ("next.png", PNG), ("next.json", Q), ("apart.json", Q)],
        ["text_missing", "members_scattered"],
    ),
    ([("next.png", PNG), ("next.json", Q)], ["duplicate_key"]),
]

LINES: list[tuple[object, str]] = [
    ({"image": "../../etc/passwd", "text": "t"}, "image_outside"),
    ({"image": "/dev/zero", "text": "t"}, "image_outside"),
    ({"image": "s3://other-bucket/1.png", "text": "t"}, "image_outside"),
    ({"image": "pipe.png", "text": "t"}, "image_missing"),
    ({"image": "gone.png", "text": "t"}, "image_missing"),
    ({"image": "https://host/1.png", "text": "t"}, "image_missing"),
    ({"image": "huge.png", "text": "t"}, "image_too_large"),
    ({"image": "data:image/png;base64,!!!!", "text": "t"}, "image_corrupt"),
    ({"image": base64.b64encode(PNG[:300]).decode(), "text": "t"}, "image_corrupt"),
    ({"image": "good.png", "messages": [{"role": "tool", "content": "x"}]}, "text_malformed"),
    ("not an object", "text_malformed"),
]

SHARDS = {
    "cut.tar": (tar_bytes(sound_samples(3))[:-9000], "shard_truncated"),
    "empty.tar": (b"", "shard_truncated"),
    "page.tar": (b"<html>" * 500, "shard_unreadable"),
    "page.parquet": (b"<html>" * 500, "shard_unreadable"),
    "empty.jsonl": (b"", "shard_truncated"),
    "cut.json": (b'[{"image": "good.png", "text": "t"}, {"image"', "shard_truncated"),
}


def fill(folder: Path) -> Counter[str]:
    """Write the folder; returns how often each reason is to be found."""
    folder.mkdir()
    (folder / "good.png").write_bytes(PNG)
    (folder / "huge.png").write_bytes(bytes(200_001))
    os.mkfifo(folder / "pipe.png")
    write_tar(folder / "sound.tar", sound_samples(8, first=500))
    with tarfile.open(folder / "faulty.tar", "w") as tar:
        for members, _ in MEMBERS:
            for name, content in members:
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    (folder / "faulty.jsonl").write_text("".join(json.dumps(record) + "\n" for record, _ in LINES))
    for name, (content, _) in SHARDS.items():
        (folder / name).write_bytes(content)
    wanted = Counter(reason for _, reasons in MEMBERS for reason in reasons)
    return wanted + Counter(reason for _, reason in LINES) + Counter(reason for _, reason in SHARDS.values())


def test_a_folder_of_forty_faulty_inputs(tmp_path: Path, tiny_model: Path) -> None:
    wanted = fill(tmp_path / "in")
    assert len(MEMBERS) + len(LINES) + len(SHARDS) == 40
    output = tmp_path / "größe 缓存"
    command = [
        sys.executable, "-m", "trio_ray.cli", "precompute", "--model", str(tiny_model), "--retention", "0.3",
        "--input", *(str(tmp_path / "in" / f"*.{ending}") for ending in ("tar", "jsonl", "json", "parquet")),
        "--output", str(output), "--set", "model.dtype=float32", "--set", "cache.codec=raw",
        "--set", "source.max_image_bytes=200000", "--set", "pipeline.max_bad_fraction=1",
    ]  # fmt: skip
    for run in range(2):
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
        screen = done.stdout + done.stderr
        assert done.returncode == 4, screen
        assert "Traceback" not in screen, screen
        assert base64.b64encode(PNG).decode()[:30] not in screen
        for name in SHARDS:
            assert f"FAILED {tmp_path}/in/{name}" in screen
        told = next((line for line in done.stdout.splitlines() if line.startswith("quarantined: ")), "")
        assert all(f"{count} {reason}" in told for reason, count in wanted.items()) == (run == 0), screen
    cache = PrunedCache(str(output))
    quarantine = cache.quarantine.to_pylist()
    assert Counter(row["reason"] for row in quarantine) == wanted
    assert max(len(row["detail"]) for row in quarantine) < 700
    # The sound tar, what the cut tar and the cut array held before the damage, and one sample among the faulty ones.
    assert len(account(LocalStore(output)).keys) == 8 + 1 + 2 + 1
