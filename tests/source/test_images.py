"""What decode_image promises."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.source.corpus import encoded
from trio_ray.source.images import ImageRejected, decode_image
from trio_ray.source.sample import Reason

LIMIT = 10_000_000


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def astronaut(size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()).resize(size)


def gradient(low: float, high: float, dtype: str) -> np.ndarray:
    return np.linspace(low, high, 64 * 48).reshape(48, 64).astype(dtype)


def reason_of(data: bytes, limit: int = LIMIT) -> Reason:
    with pytest.raises(ImageRejected) as caught:
        decode_image(data, limit)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_each_allowed_format_decodes_as_pillow_does(kind: str) -> None:
    data = saved(astronaut(), kind)
    pixels = decode_image(data, LIMIT)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (30, 40, 3)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("RGBA", "TIFF"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "JPEG"),
        ("L", "JPEG"),
        ("P", "GIF"),
        ("P", "BMP"),
    ],
)
def test_every_colour_mode_becomes_what_plain_convert_gives(mode: str, kind: str) -> None:
    data = saved(astronaut().convert(mode), kind)
    np.testing.assert_array_equal(decode_image(data, LIMIT), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_palette_transparency_keeps_the_colours_and_does_not_warn(transparency: int | bytes) -> None:
    data = saved(astronaut().quantize(64), "PNG", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode_image(data, LIMIT), wanted)


def test_alpha_is_dropped_and_not_blended() -> None:
    pixels = np.full((4, 4, 4), (200, 100, 50, 0), np.uint8)
    assert (decode_image(saved(Image.fromarray(pixels), "PNG"), LIMIT) == (200, 100, 50)).all()


@pytest.mark.parametrize(
    ("low", "high", "dtype", "kind"),
    [
        (0, 65535, "uint16", "PNG"),
        (0, 65535, "uint16", "TIFF"),
        (0, 65535, ">u2", "TIFF"),
        (0, 65535, "int32", "TIFF"),
        (0, 255, "int32", "TIFF"),
        (-70000, 70000, "int32", "TIFF"),
        (0, 1, "float32", "TIFF"),
        (0, 255, "float32", "TIFF"),
        (-3, 9, "float32", "TIFF"),
        (0, 1e9, "float32", "TIFF"),
    ],
)
def test_deep_images_are_scaled_and_not_clipped(low: float, high: float, dtype: str, kind: str) -> None:
    """A ramp over the whole range comes out as a ramp from black to white, whatever its type."""
    pixels = decode_image(saved(Image.fromarray(gradient(low, high, dtype)), kind), LIMIT)
    np.testing.assert_allclose(pixels[..., 0], gradient(0, 255, "float64"), atol=1.01)


def test_sixteen_bit_grey_and_sixteen_bit_colour_agree() -> None:
    """Grey is scaled by us and colour by Pillow: the same sample value must give the same pixel."""
    grey = gradient(0, 65535, "uint16")
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).astype(">u2").tobytes() for row in grey)
    colour = png_of(grey.shape[1], grey.shape[0], rows, depth=16, colour=2)
    np.testing.assert_array_equal(decode_image(colour, LIMIT), decode_image(saved(Image.fromarray(grey), "PNG"), LIMIT))


def test_float_values_that_are_no_numbers_become_black() -> None:
    values = np.full((5, 5), 0.5, np.float32)
    values[0, 0], values[0, 1] = np.nan, np.inf
    pixels = decode_image(saved(Image.fromarray(values), "TIFF"), LIMIT)
    assert (pixels[0, :2] == 0).all()
    assert (pixels[1:] == 128).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_exif_orientation_is_honoured(orientation: int, kind: str, options: dict[str, object]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(astronaut(), kind, exif=exif, **options)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, LIMIT), wanted)
    assert wanted.shape == ((40, 30, 3) if orientation >= 5 else (30, 40, 3))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (8, 6), (250, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 250))
    pixels = decode_image(saved(first, kind, save_all=True, append_images=[second]), LIMIT)
    assert pixels.shape == (6, 8, 3)
    assert (pixels[..., 0] > 240).all()
    assert (pixels[..., 2] < 10).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (500, 10), (2, 100)])
def test_one_pixel_and_extreme_aspects_are_images_like_any_other(size: tuple[int, int]) -> None:
    assert decode_image(encoded(size=size, kind="PNG"), LIMIT).shape == (size[1], size[0], 3)


def png_of(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_from_its_header() -> None:
    """The body holds no pixels, so a refusal for the size must come from the header. Nor does Pillow warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for side in (10_001, 14_000, 60_000):
            assert reason_of(png_of(side, side, b""), 100_000_000) == Reason.IMAGE_TOO_LARGE


def test_the_limit_is_ours_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_image(encoded(size=(9, 7), kind="PNG"), 63).shape == (7, 9, 3)
    assert reason_of(encoded(size=(9, 7), kind="PNG"), 62) == Reason.IMAGE_TOO_LARGE


def test_what_pillow_itself_calls_a_bomb_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """WebP and GIF keep Pillow's limit, far above our default, whatever ours is."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert reason_of(encoded(size=(9, 7), kind="WEBP")) == Reason.IMAGE_TOO_LARGE


def test_zero_bytes_are_empty_and_not_corrupt() -> None:
    assert reason_of(b"") == Reason.IMAGE_EMPTY


@pytest.mark.parametrize(
    "data",
    [
        b"GIF8",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"BM",
        b"II*\0",
        b"<html>404</html>",
        b"%PDF-1.7",
        b"\0" * 99,
    ],
)
def test_bytes_that_are_no_image_are_corrupt(data: bytes) -> None:
    assert reason_of(data) == Reason.IMAGE_CORRUPT


def test_a_format_outside_the_list_is_refused_though_pillow_could_read_it() -> None:
    assert reason_of(saved(astronaut(), "PPM")) == Reason.IMAGE_CORRUPT
    assert reason_of(saved(astronaut(), "ICO")) == Reason.IMAGE_CORRUPT


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_truncated_image_is_corrupt(kind: str, share: float) -> None:
    data = encoded(size=(64, 64), kind=kind)
    assert reason_of(data[: int(len(data) * share)]) == Reason.IMAGE_CORRUPT


CORRUPT_EXIF = """
import io, sys
from PIL import Image
from trio_ray.source.images import decode_image
for kind, tiff in ((kind, tiff) for kind in ("JPEG", "PNG", "WEBP") for tiff in (
    b"II*\\0\\x08\\0\\0\\0\\xff\\0\\x12\\x01\\x03\\0", b"no TIFF header", b""
)):
    exif = b"Exif\\0\\0" + tiff
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 0, 0)).save(file, kind, exif=exif)
    assert decode_image(file.getvalue(), 1000).shape == (6, 8, 3), kind
"""


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


BIG = zlib.compress(bytes(3 << 20))


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"note\0\0" + BIG),
        png_chunk(b"iTXt", b"note\0\1\0\0\0" + BIG),
        png_chunk(b"tEXt", b"note\0" + b"x" * (80 << 20)),
        png_chunk(b"iCCP", b"profile\0\0" + BIG),
        png_chunk(b"iCCP", b"profile\0\0not compressed"),
        png_chunk(b"zTXt", b"note\0\0" + BIG) * 40,
    ],
    ids=["zTXt", "iTXt", "tEXt", "iCCP", "broken iCCP", "many"],
)
@pytest.mark.filterwarnings("error")
def test_large_or_broken_texts_and_profiles_do_not_cost_a_png(chunk: bytes) -> None:
    plain = saved(astronaut(), "PNG")
    header = 8 + 25
    assert plain[12:16] == b"IHDR"
    pixels = decode_image(plain[:header] + chunk + plain[header:], LIMIT)
    np.testing.assert_array_equal(pixels, decode_image(plain, LIMIT))


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"<!DOCTYPE html><html>", "web page"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")],
)
def test_what_stands_in_an_images_place_is_told(data: bytes, words: str) -> None:
    with pytest.raises(ImageRejected, match=words):
        decode_image(data, LIMIT)


def test_broken_metadata_costs_neither_the_image_nor_a_warning() -> None:
    """In a process where every warning is an error and goes to stderr."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", CORRUPT_EXIF], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


SEEDS = [
    encoded(kind="JPEG", size=(20, 16)),
    encoded(kind="PNG", size=(20, 16)),
    encoded(kind="WEBP", size=(20, 16)),
    encoded(kind="GIF", size=(20, 16)),
    encoded(kind="BMP", size=(20, 16)),
    encoded(kind="TIFF", size=(20, 16)),
    saved(astronaut((20, 16)), "TIFF", compression="tiff_lzw"),
    saved(astronaut((20, 16)).convert("CMYK"), "JPEG"),
    saved(astronaut((20, 16)).quantize(16), "PNG", transparency=bytes(16)),
    saved(Image.fromarray(gradient(0, 1, "float32")), "TIFF"),
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
    st.floats(0.2, 1),
)
def test_mutated_images_decode_or_are_rejected(data: bytes, flips: list[tuple[float, int]], cut: float) -> None:
    """Half of the flips go into the first 64 bytes, where the headers are."""
    damaged = bytearray(data)
    for number, (place, value) in enumerate(flips):
        damaged[int(place * (64 if number % 2 else len(data)))] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = decode_image(bytes(damaged[: int(len(data) * cut)]), 100_000)
        except ImageRejected:
            return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= 100_000


def test_threads_decode_the_same_pixels() -> None:
    wanted = [decode_image(data, LIMIT) for data in SEEDS]
    with ThreadPoolExecutor(4) as pool:
        for found, pixels in zip(pool.map(lambda data: decode_image(data, LIMIT), SEEDS * 8), wanted * 8, strict=True):
            np.testing.assert_array_equal(found, pixels)
