"""Small corpora of every source format, with images whose size and content differ from sample to sample."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

QUESTIONS = (
    "what is the colour of the shape in this picture ?",
    "how many red circle in the picture ? please answer",
    "describe it briefly",
    "is there a blue square left of the green circle ?",
)
ANSWERS = ("red", "two", None, "yes")

Fields = Mapping[str, object]


def noise(seed: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of random pixels; (width, height) is drawn from the seed too unless it is given."""
    rng = np.random.default_rng(seed)
    width, height = size or (int(side) for side in rng.integers(8, 120, 2))
    return _png(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo() -> bytes:
    """A real photograph, small."""
    import skimage.data

    return _png(skimage.data.astronaut()[::4, ::4])


def sample(number: int, **fields: object) -> dict[str, object]:
    """A sound sample, different for each number; `fields` replace or add (None removes)."""
    record = {"question": QUESTIONS[number % 4], "answer": ANSWERS[number % 4]}
    sound = {"__key__": f"s{number:04d}", "png": noise(number), "json": record}
    return {name: value for name, value in {**sound, **fields}.items() if value is not None}


def samples(count: int, first: int = 0) -> list[dict[str, object]]:
    """`count` sound samples from `first` on."""
    return [sample(number) for number in range(first, first + count)]


def tar_bytes(members: Iterable[Fields]) -> bytes:
    """A WebDataset tar: bytes as they are, mappings as JSON, text as UTF-8."""
    file = io.BytesIO()
    with webdataset.TarWriter(file, encoder=False, mtime=1.5) as writer:
        for member in members:
            writer.write({name: _member(name, value) for name, value in member.items()})
    return file.getvalue()


def write_tar(path: Path, members: Iterable[Fields]) -> Path:
    """The same as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path


def write_parquet(path: Path, members: Sequence[Fields]) -> Path:
    """The same samples in Hugging Face's layout: image as {bytes, path}, question and answer as columns."""
    rows = [
        {
            "key": member["__key__"],
            "image": {"bytes": member["png"], "path": None},
            **{name: member["json"][name] for name in ("question", "answer")},  # type: ignore[index]
        }
        for member in members
    ]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("key", pa.string()), ("image", image), ("question", pa.string()), ("answer", pa.string())]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), path)
    return path


def write_jsonl(path: Path, members: Sequence[Fields]) -> Path:
    """The same samples as lines that name images beside the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for member in members:
        image = path.parent / f"{member['__key__']}.png"
        image.write_bytes(member["png"])  # type: ignore[arg-type]
        lines.append(json.dumps({"key": member["__key__"], "image": image.name, **member["json"]}))  # type: ignore[dict-item]
    path.write_text("\n".join(lines) + "\n")
    return path


def _member(name: str, value: object) -> object:
    if name == "__key__" or isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
