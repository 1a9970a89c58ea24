"""Image files -> RGB pixels, the same in validation, out of fold and in submissions. Entry point: `load_image`."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from cassava_kit.data.progress import track
from cassava_kit.errors import UserError

MAX_DECODED_PIXELS = 40_000_000
# A progressive JPEG keeps all its coefficients in memory, about 3 bytes a pixel, whatever size it is decoded at.
MAX_PROGRESSIVE_PIXELS = 160_000_000
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
QUICK_BYTES = 4096
# What Pillow may read beside JPEG: decoders of pictures alone, nothing that starts other programs as EPS does.
OTHER_FORMATS = ("PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
# A JPEG without its end may lack this share of its picture, which decoders fill with this gray.
MISSING_SHARE, MISSING_GRAY = 0.1, 128
# Rises when decoding or resizing gives other pixels: what is kept of them is then made anew.
PIXELS_VERSION = 3


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class ImageError(UserError):
    """A file or its content is not a whole image; the message says why."""


class JpegFrame(NamedTuple):
    """A JPEG's header: size in pixels before any EXIF rotation, whether progressive, offset of the first scan."""

    height: int
    width: int
    progressive: bool
    scan_at: int


def load_image(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Return the evaluation pixels of an image file: (height, width, 3) uint8 RGB, whole image, aspect ratio not kept.

    They are PIL's within two levels: a full decode and an antialiased bilinear resize.

    Raises:
        ImageError: It is no whole image; the message names the file.
    """
    return resize(read_image(path), size)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file at its own size, (H, W, 3) uint8 RGB; ImageError, naming the file, where it is not whole."""
    try:
        return decode(read_bytes(path))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def read_bytes(path: str | Path) -> bytes:
    """Return a file's content; ImageError for a folder, or a file that is missing or cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from None


def decode(content: bytes) -> np.ndarray:
    """Decode a whole image file's content to (H, W, 3) uint8 RGB, EXIF orientation applied.

    JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000 and PPM are known by content, not by name, and of several pictures
    the first is taken; gray, CMYK and 16-bit pixels become 8-bit RGB and transparency is dropped. JPEGs above 40
    megapixels are decoded at 1/2, 1/4 or 1/8 of their size. A JPEG whose end is missing is taken as long as nine tenths
    of its picture are there. Raises ImageError.
    """
    return _decode(content)


def image_size(content: bytes) -> tuple[int, int]:
    """Return (height, width) from an image file's header, before any EXIF rotation; nothing is decoded.

    Raises ImageError where there is no readable header.
    """
    if content.startswith(JPEG_START):
        frame = _jpeg_frame(content)
        if frame is None:
            raise ImageError("a JPEG without a readable header")
        return frame.height, frame.width
    return _header_size(content)


def decode_small(content: bytes, side: int, *, most: int = 8) -> np.ndarray:
    """Decode to (H, W, 3) uint8 RGB; a JPEG at the smallest of 1, 1/2, 1/4, 1/8 that leaves both sides >= `side`.

    `most` is the largest divisor that is tried.
    """
    return _decode(content, side=side, most=most)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to `size` (height, width), antialiased bilinear: PIL's pixels within two levels.

    A channels-last uint8 tensor takes torch's vectorised path, 3-4 times faster than PIL. Safe to call from threads.
    """
    import torch

    height, width = size
    if image.shape[:2] == (height, width):
        return image
    # The axis of the batch before that of the channels: in the other order torch does not see that a batch of one is
    # channels-last, and copies it into another layout and back.
    batch = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)
    # Rows first. In torch's own order the pass over columns, which is less vectorised, goes through all rows.
    steps = [(height, image.shape[1]), (height, width)] if height < image.shape[0] else [(height, width)]
    for step in steps:
        batch = torch.nn.functional.interpolate(batch, size=step, mode="bilinear", antialias=True)
    return np.ascontiguousarray(batch[0].permute(1, 2, 0).numpy())


def quick_check(path: str | Path) -> str | None:
    """Return why a file is not a whole image; None where it is, or seems so from its first and last bytes.

    Where those bytes do not decide (a JPEG without an end marker, another format, a tiny file), it is decoded.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(len(PNG_START))
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - QUICK_BYTES))
            tail = file.read(QUICK_BYTES)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if length > QUICK_BYTES and head.startswith(JPEG_START) and tail.rstrip(b"\x00").endswith(JPEG_END):
        return None
    if head == PNG_START and tail.endswith(PNG_END):
        return None
    return _reason(path)


def in_threads(
    function: Callable[[_Item], _Result], items: Sequence[_Item], *, title: str, progress: bool
) -> Iterator[_Result]:
    """Yield `function` of each item, in order, from a pool of threads, with a progress bar on standard error."""
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        yield from track(pool.map(function, items), title, total=len(items), show=progress)
    finally:
        pool.shutdown(cancel_futures=True)


def _reason(path: str | Path) -> str | None:
    try:
        decode(read_bytes(path))
    except ImageError as error:
        return str(error)
    return None


def _decode(content: bytes, *, side: int | None = None, most: int = 1) -> np.ndarray:
    """Decode; a JPEG's sides divided by up to `most`, as long as the shorter keeps `side` pixels."""
    if not content.startswith(JPEG_START):
        _check_other(content)
        image = _opencv(content)
        return _pillow(content) if image is None else image
    frame = _check_jpeg(content)
    room = min(frame.height, frame.width) // side if side else 1
    shrink = max(_memory_shrink(frame), *(n for n in (1, 2, 4, 8) if n == 1 or n <= min(most, room)))
    # Nearly every file ends with the marker: looking there first spares a search through all of it.
    if content.endswith(JPEG_END) or content.find(JPEG_END, frame.scan_at) >= 0:
        image = _opencv(content, shrink)
        if image is None:
            raise ImageError("cannot be decoded: its data are damaged or cut off")
        return image
    # By Pillow, whose libjpeg writes nothing to stderr about what is missing; the pixels are the same.
    image = _pillow(content.rstrip(JPEG_END[:1]) + JPEG_END, shrink)
    if (image == MISSING_GRAY).all(axis=2).mean() > MISSING_SHARE:
        raise ImageError("a JPEG cut off before its end")
    return image


def _opencv(content: bytes, shrink: int = 1) -> np.ndarray | None:
    """OpenCV's RGB pixels, a JPEG's sides divided by `shrink`; None where it cannot decode the content."""
    import cv2

    _silence_opencv()
    # OpenCV's "reduced" flags are one bit each, and colour another: RGB at once spares a pass over the pixels.
    reduced = {
        1: 0,
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    }
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), reduced[shrink] | cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None


def _pillow(content: bytes, shrink: int = 1) -> np.ndarray:
    """Pillow's RGB pixels of what OpenCV cannot decode (GIF and AVIF in some builds, a PNG or JPEG without its end)."""
    import warnings

    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=["JPEG", *_pillow_formats()]) as image:
                if image.mode[0] in "IF":
                    raise ImageError(f"cannot be decoded: pixels of kind {image.mode}")
                if shrink > 1:
                    image.draft("RGB", (image.width // shrink, image.height // shrink))
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"cannot be decoded: its data are damaged or cut off ({type(error).__name__})") from None


def _memory_shrink(frame: JpegFrame) -> int:
    """Return 1, 2, 4 or 8: the divisor of a JPEG's sides with which the decoded image fits the limit."""
    area = frame.height * frame.width
    if frame.progressive and area > MAX_PROGRESSIVE_PIXELS:
        raise _too_large(frame.height, frame.width)
    for shrink in (1, 2, 4, 8):
        if area <= MAX_DECODED_PIXELS * shrink**2:
            return shrink
    raise _too_large(frame.height, frame.width)


def _too_large(height: int, width: int) -> ImageError:
    return ImageError(f"{width}x{height} pixels are more than can be decoded safely; make the image smaller")


def _check_jpeg(content: bytes) -> JpegFrame:
    """Return the JPEG's header; ImageError where there is none."""
    frame = _jpeg_frame(content)
    if frame is None:
        raise ImageError("a JPEG without a readable header")
    return frame


def _jpeg_frame(content: bytes) -> JpegFrame | None:
    """Walk a JPEG's segments up to its first scan (ITU T.81, annex B); None where they make no sense."""
    at, found = 2, None
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA:
            return found and JpegFrame(*found, scan_at=at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 9 <= len(content):
            height, width = (int.from_bytes(content[at + k : at + k + 2], "big") for k in (5, 7))
            found = (height, width, marker in (0xC2, 0xC6, 0xCA, 0xCE))
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None


def _check_other(content: bytes) -> None:
    """Refuse what is no image of `OTHER_FORMATS`, or too large to decode."""
    height, width = _header_size(content)
    if height * width > MAX_DECODED_PIXELS:
        raise _too_large(height, width)


def _header_size(content: bytes) -> tuple[int, int]:
    """(height, width) as Pillow reads it from the header, or as an AVIF's own box says it; nothing is decoded."""
    import warnings

    from PIL import Image, UnidentifiedImageError

    if not content:
        raise ImageError("the file is empty")
    if content[4:12] in (b"ftypavif", b"ftypavis") and (at := content.find(b"ispe")) >= 0:  # ISO/IEC 23008-12, 6.5.3
        width, height = (int.from_bytes(content[at + k : at + k + 4], "big") for k in (8, 12))
        return height, width
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_pillow_formats()) as image:
                return image.height, image.width
    except UnidentifiedImageError:
        raise ImageError(
            f"not a JPEG, {', '.join(OTHER_FORMATS[:-1])} or {OTHER_FORMATS[-1]} image, or its header is damaged "
            f"(it begins with {content[:12]!r})"
        ) from None
    except Image.DecompressionBombError:
        raise ImageError("more pixels than can be decoded safely; make the image smaller") from None
    except Exception as error:
        raise ImageError(f"its header cannot be read ({type(error).__name__})") from None


@cache
def _pillow_formats() -> list[str]:
    """`OTHER_FORMATS` as far as this Pillow has them."""
    from PIL import Image

    Image.init()
    return [name for name in OTHER_FORMATS if name in Image.OPEN]


@cache
def _silence_opencv() -> None:
    """Turn off OpenCV's own log, once: a damaged image is reported by ImageError, with its file's name."""
    import cv2

    logging = getattr(cv2.utils, "logging", cv2)  # where OpenCV 5 and OpenCV 4 have it
    logging.setLogLevel(0)
