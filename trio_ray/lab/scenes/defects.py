"""Samples that a reader must reject with the right reason, and odd ones that it must accept."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

BOMB_SIDE = 60_000


@dataclass(frozen=True, slots=True)
class RawSample:
    """A sample as tar members: contents by file suffix."""

    key: str
    members: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Defect:
    """One unusual sample.

    `reason` is the value of `trio_ray.source.sample.Reason` that it is rejected with; None: it must be accepted.
    """

    key: str
    kind: str
    reason: str | None


def defective_samples(samples: list[RawSample]) -> Iterator[tuple[Defect, RawSample]]:
    """One sample of every kind, made from good ones of the same shard (at least one, which the last repeats)."""
    image, suffix, text = _content(samples[0])
    question = _json("Is there a red circle?", "no")
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    kinds: list[tuple[str, str | None, dict[str, bytes]]] = [
        ("truncated-jpeg", "image_corrupt", {"jpg": _save(picture, "JPEG")[:-400], "json": text}),
        ("empty-image", "image_empty", {"jpg": b"", "json": text}),
        ("text-as-image", "image_corrupt", {"jpg": b"<html>404 Not Found</html>\n", "json": text}),
        ("no-image", "text_only", {"json": text}),
        ("no-text", "text_missing", {suffix: image}),
        ("text-not-utf8", "text_not_utf8", {suffix: image, "txt": "Où est le café ?".encode("latin-1")}),
        ("json-cut-off", "text_malformed", {suffix: image, "json": text[: len(text) // 2]}),
        ("bomb", "image_too_large", {"png": _bomb(BOMB_SIDE), "json": text}),
        ("one-pixel", None, {"png": _save(Image.new("RGB", (1, 1), (120, 120, 120)), "PNG"), "json": question}),
        ("ribbon-50-to-1", None, {"png": _save(Image.new("RGB", (1000, 20), (90, 110, 130)), "PNG"), "json": question}),
        ("cmyk", None, {"jpg": _save(picture.convert("CMYK"), "JPEG"), "json": text}),
        ("exif-rotated", None, {"jpg": _rotated(picture), "json": text}),
    ]
    for kind, reason, members in kinds:
        yield Defect(f"odd-{kind}", kind, reason), RawSample(f"odd-{kind}", members)
    yield Defect(samples[0].key, "duplicate-key", "duplicate_key"), RawSample(samples[0].key, samples[-1].members)


def truncate_last_sample(shard: Path, key: str) -> Defect:
    """Cut a tar file in the middle of the image of its last sample, `key`."""
    with tarfile.open(shard) as archive:
        member = next(m for m in archive.getmembers() if m.name.startswith(f"{key}.") and not m.name.endswith(".json"))
    content = shard.read_bytes()
    shard.write_bytes(content[: member.offset_data + member.size // 2])
    return Defect(key, "truncated-shard", "shard_truncated")


def _content(sample: RawSample) -> tuple[bytes, str, bytes]:
    suffix = next(name for name in sample.members if name != "json")
    return sample.members[suffix], suffix, sample.members["json"]


def _json(question: str, answer: str) -> bytes:
    return json.dumps({"question": question, "answer": answer, "type": "existence", "fine": False}).encode()


def _save(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def _rotated(image: Image.Image) -> bytes:
    """Stored lying on its side, with the EXIF note that says how to turn it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to view
    buffer = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=95, subsampling=0, exif=exif)
    return buffer.getvalue()


def _bomb(side: int) -> bytes:
    """A few hundred bytes of PNG that claim `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(4096))) + chunk(b"IEND", b"")
    )
