"""Encoded images to RGB pixels, or the reason why not."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from trio_ray.source.rejection import Rejected
from trio_ray.source.sample import Reason

# Pillow warns about odd metadata of images that it reads perfectly well. Set once for its modules and never
# touched while decoding: `warnings.catch_warnings` around a decode would race between threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_FORMATS: tuple[tuple[tuple[bytes, ...], type[ImageFile]], ...] = (
    ((b"\xff\xd8\xff",), JpegImageFile),
    ((_PNG,), PngImageFile),
    ((b"GIF87a", b"GIF89a"), GifImageFile),
    ((b"BM",), BmpImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile),
    ((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"), Jpeg2KImageFile),
)

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageRejected(Rejected):
    """The bytes are no usable image: IMAGE_EMPTY, IMAGE_CORRUPT or IMAGE_TOO_LARGE."""


def decode_image(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or JPEG 2000 image.

    Of an animated or multi-page one the first frame is taken.

    EXIF orientation is applied. Alpha is dropped, not blended, as the model's own processor does. Samples of
    16 bits are scaled to 8, of 32 bits by the range that the values suggest. Safe to call from many threads.

    Args:
        data: the file's bytes.
        max_pixels: images with more pixels are refused from their header, before a pixel is decoded.

    Returns:
        uint8 (height, width, 3), RGB, contiguous and writable.

    Raises:
        ImageRejected: with the reason; no other exception leaves this function.
    """
    if not data:
        raise ImageRejected(Reason.IMAGE_EMPTY, "zero bytes")
    try:
        return _decode(data, max_pixels)
    except ImageRejected as fault:
        # Pillow refuses a PNG for texts and colour profiles that are large or broken, which the pixels do not need.
        plain = _without_png_metadata(data) if fault.reason == Reason.IMAGE_CORRUPT else data
        if len(plain) == len(data):
            raise
    return _decode(plain, max_pixels)


def is_image(data: bytes) -> bool:
    """Whether bytes begin as an image of a format that `decode_image` knows."""
    return _format_of(data) is not None


def _decode(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    try:
        with _open(data) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageRejected(
                    Reason.IMAGE_TOO_LARGE,
                    f"{width} x {height} is more than source.max_pixels = {max_pixels}",
                )
            image.load()
            return np.array(_upright(_eight_bit_rgb(image), _orientation(image)))
    except ImageRejected:
        raise
    except Image.DecompressionBombError as error:  # WebP and GIF also keep Pillow's own limit
        raise ImageRejected(Reason.IMAGE_TOO_LARGE, str(error)) from None
    except Exception as error:  # hostile bytes raise nearly everything somewhere in a decoder
        raise ImageRejected(Reason.IMAGE_CORRUPT, f"{type(error).__name__}: {error}") from None


def _open(data: bytes) -> ImageFile:
    """Parse the header.

    Not `Image.open`: it warns or raises by a process-wide pixel limit before ours is asked.
    """
    opener = _format_of(data)
    if opener is None:
        raise ImageRejected(
            Reason.IMAGE_CORRUPT, f"not a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or JPEG 2000 file{_told(data)}"
        )
    return opener(BytesIO(data))


def _format_of(data: bytes) -> type[ImageFile] | None:
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if (data[4:8] == b"ftyp" and b"avif" in data[8:64]) or data[4:12] == b"ftypavis":
        return AvifImageFile
    return next((kind for starts, kind in _FORMATS if data.startswith(starts)), None)


def _told(data: bytes) -> str:
    """What the bytes are instead, where that is easy to say and helps."""
    start = data[:256].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "; it is a web page, so its download failed"
    if start.startswith(b"version https://git-lfs"):
        return "; it is a Git LFS pointer, so run git lfs pull"
    return ""


def _without_png_metadata(data: bytes) -> bytes:
    """A PNG without its texts and its colour profile; other bytes as they are."""
    if not data.startswith(_PNG):
        return data
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _PNG_METADATA:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _orientation(image: ImageFile) -> int:
    """EXIF orientation, 1 (upright) where the metadata cannot be read: the pixels are still good.

    Asked after loading, since Pillow itself turns TIFF files then and drops their tag.
    """
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is a TIFF inside the image and breaks in as many ways
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _eight_bit_rgb(image: Image.Image) -> Image.Image:
    # Plain `convert` clips these modes at 255, which turns most of such an image white.
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bit(np.asarray(image)))
    # The colour that counts as transparent is of no use to RGB, and carrying it over makes Pillow warn.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _eight_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale one channel to 0..255: (height, width) of 16-bit integers, 32-bit integers or floats.

    16 bits keep their high byte, as Pillow does for 16-bit colour. The wider types have no range of their
    own: values within 0..1 (floats), 0..255 or 0..65535 are taken as such, anything else is stretched from
    its minimum to its maximum. Values that are no number become 0.
    """
    if values.dtype.itemsize == 2:
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    numbers = np.where(np.isfinite(values), values, 0).astype(np.float64)
    low, high = float(numbers.min(initial=0.0)), float(numbers.max(initial=0.0))
    if low < 0.0 or high > 65535.0:
        numbers = (numbers - numbers.min()) / max(float(np.ptp(numbers)), np.finfo(np.float64).tiny) * 255.0
    elif high > 255.0:
        numbers = np.floor(numbers / 256.0)
    elif high <= 1.0 and values.dtype.kind == "f":
        numbers = numbers * 255.0
    return np.rint(numbers).astype(np.uint8)
