"""A contact sheet: random pictures of every class, a row a class, as one image; entry point `contact_sheet`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cassava_kit.competition import Competition, current
from cassava_kit.data.images import ImageError, load_image
from cassava_kit.data.table import TrainTable, read_competition
from cassava_kit.errors import UserError
from cassava_kit.files import atomic_path

TILE = (120, 160)
GAP = 4


def contact_sheet(
    data: Path, out: Path, *, columns: int = 8, seed: int = 0, competition: Competition | None = None
) -> str:
    """Write a sheet of `columns` random pictures of each given label, a row a class; return a line for the user.

    `out` is a .png or .jpg. Pictures that cannot be read are passed over; a class with fewer leaves gray tiles.
    """
    competition = competition or current()
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"the sheet must be a .png or .jpg file, got {out}")
    if columns < 1:
        raise UserError(f"columns must be at least 1, got {columns}")
    table = read_competition(data, competition)
    rng = np.random.default_rng(seed)
    rows = [_row(table, label, columns, rng) for label in range(competition.n_classes)]
    sheet = np.concatenate([rows[0], *(part for row in rows[1:] for part in (_gap(row.shape[1], axis=0), row))])
    _write(out, sheet)
    names = "; ".join(f"row {label + 1}: {name}" for label, name in enumerate(competition.classes))
    return f"{out}: {columns} pictures a class by given label ({names})"


def _row(table: TrainTable, label: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    names = table.frame["image_id"][table.frame["label"] == label].to_numpy()
    tiles: list[np.ndarray] = []
    for name in rng.permutation(names):
        if len(tiles) == columns:
            break
        try:
            tiles.append(load_image(table.image_dir / name, TILE))
        except ImageError:
            continue
    tiles += [np.full((*TILE, 3), 128, np.uint8)] * (columns - len(tiles))
    return np.concatenate([tiles[0], *(part for tile in tiles[1:] for part in (_gap(TILE[0], axis=1), tile))], axis=1)


def _gap(length: int, *, axis: int) -> np.ndarray:
    shape = (GAP, length, 3) if axis == 0 else (length, GAP, 3)
    return np.full(shape, 255, np.uint8)


def _write(out: Path, sheet: np.ndarray) -> None:
    import cv2

    coded, content = cv2.imencode(out.suffix.lower(), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert coded  # the suffix was checked, and any uint8 picture can be coded
    with atomic_path(out) as temporary:
        temporary.write_bytes(content.tobytes())
