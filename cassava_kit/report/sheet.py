"""A contact sheet: random pictures of every class under its name, as one image; entry point `contact_sheet`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cassava_kit.competition import Competition, current
from cassava_kit.data.images import ImageError, read_image, resize
from cassava_kit.data.table import TrainTable, read_competition
from cassava_kit.errors import UserError
from cassava_kit.files import atomic_path
from cassava_kit.report.fonts import fitting_font, shorten

TILE = (120, 160)
GAP = 4
BAND, LETTERS = 24, 15  # height of the band with a class's name, and of its letters, in pixels
MISSING = 128  # gray of a tile without a picture


def contact_sheet(
    data: Path, out: Path, *, columns: int = 8, seed: int = 0, competition: Competition | None = None
) -> str:
    """Write a sheet of `columns` random pictures of each given label under its name; return a line for the user.

    `out` is a .png or .jpg. Pictures that cannot be read are passed over; a class with fewer leaves gray tiles.
    """
    competition = competition or current()
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"the sheet must be a .png or .jpg file, got {out}")
    if columns < 1:
        raise UserError(f"columns must be at least 1, got {columns}")
    table = read_competition(data, competition)
    rng = np.random.default_rng(seed)
    rows = [random_pictures(table, label, columns, rng) for label in range(competition.n_classes)]
    with atomic_path(out) as temporary:
        temporary.write_bytes(encode_picture(draw_sheet(competition.classes, rows, columns=columns), out.suffix))
    return f"{out}: {columns} pictures a class by given label, {competition.n_classes} classes"


def random_pictures(table: TrainTable, label: int, most: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return up to `most` readable random pictures of a label, each (*TILE, 3) uint8 RGB."""
    names = table.frame["image_id"][table.frame["label"] == label].to_numpy()
    pictures: list[np.ndarray] = []
    for name in rng.permutation(names):
        if len(pictures) == most:
            break
        try:
            pictures.append(resize(four_to_three(read_image(table.image_dir / name)), TILE))
        except ImageError:
            continue
    return pictures


def draw_sheet(
    titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]], *, columns: int | None = None
) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 of rows of pictures (h, w, 3) uint8, each row under its title.

    A picture is cut to 4:3 about its middle and resized to `TILE`; places without one are gray. `columns`: places in a
    row; default: as many as the longest row needs.
    """
    columns = columns or max(1, *(len(row) for row in rows))
    height, width = TILE
    sheet = np.full((len(rows) * (BAND + height + GAP), columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for n, (title, row) in enumerate(zip(titles, rows, strict=True)):
        top = n * (BAND + height + GAP)
        sheet[top : top + BAND] = draw_band(title, sheet.shape[1])
        for column in range(columns):
            left = column * (width + GAP)
            tile = resize(four_to_three(row[column]), TILE) if column < len(row) else MISSING
            sheet[top + BAND : top + BAND + height, left : left + width] = tile
    return sheet


def draw_band(text: str, width: int) -> np.ndarray:
    """Return a white band (BAND, width, 3) uint8 with the text in black, cut with an ellipsis where it is too long."""
    from PIL import Image, ImageDraw

    font = fitting_font(text, LETTERS)
    shown = next((s for n in range(len(text), 0, -1) if font.getlength(s := shorten(text, n)) <= width - 2 * GAP), "")
    band = Image.new("RGB", (width, BAND), "white")
    ImageDraw.Draw(band).text((GAP, BAND / 2), shown, fill="black", font=font, anchor="lm")
    return np.asarray(band)


def four_to_three(picture: np.ndarray) -> np.ndarray:
    """Return the middle of a picture (H, W, 3), cut to 4:3."""
    height, width = picture.shape[:2]
    high, wide = min(height, max(1, width * 3 // 4)), min(width, max(1, height * 4 // 3))
    top, left = (height - high) // 2, (width - wide) // 2
    return picture[top : top + high, left : left + wide]


def encode_picture(picture: np.ndarray, suffix: str) -> bytes:
    """Return an RGB picture (H, W, 3) uint8 as the content of a .png or .jpg file."""
    import cv2

    coded, content = cv2.imencode(suffix.lower(), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert coded  # any uint8 picture can be coded
    return content.tobytes()
