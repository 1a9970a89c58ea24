"""Small pictures as base64 WebP for the pages; entry points `thumbnails` and `thumbnail`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cassava_kit.data.images import ImageError, decode_small, in_threads, read_bytes
from cassava_kit.files import path_inside

THUMBNAIL = 160


def thumbnails(image_dir: Path, names: Sequence[str], *, progress: bool = True) -> dict[str, str]:
    """Return small pictures of the images by name, in base64; an empty text for one that cannot be read.

    Raises:
        UserError: A name, or the link that it names, leads out of the folder.
    """
    distinct = list(dict.fromkeys(names))
    paths = [path_inside(image_dir, name) for name in distinct]
    made = in_threads(lambda path: thumbnail(path, THUMBNAIL), paths, title="Thumbnails", progress=progress)
    return dict(zip(distinct, made, strict=True))


def decode_thumbnail(picture: str) -> np.ndarray:
    """Return the pixels (H, W, 3) of a thumbnail."""
    from cassava_kit.data.images import decode

    return decode(base64.b64decode(picture))


# Longer side of thumbnails in pixels, and their WebP quality: as good as JPEG's 72 in two thirds of the bytes, so that
# `MANY` photographs stay below 30 MB. Fewer are shown in as many pixels altogether.
PHOTO, LARGEST_PHOTO, NEIGHBOUR, QUALITY = 240, 720, 72, 50
MANY = 2000


def photo_side(n: int) -> int:
    """Return the longer side of `n` photographs on one page: 240 pixels for 2,000, 480 for 500, 720 for 200."""
    return min(LARGEST_PHOTO, max(PHOTO, int(PHOTO * (MANY / max(n, 1)) ** 0.5)))


def thumbnail(path: Path, side: int) -> str:
    """Return a WebP picture with a longer side of `side` pixels, in base64; empty where the file is no whole image."""
    import cv2

    try:
        image = decode_small(read_bytes(path), side)
    except ImageError:
        return ""
    scale = side / max(image.shape[:2])
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    _, content = cv2.imencode(".webp", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    return base64.b64encode(content.tobytes()).decode("ascii")
