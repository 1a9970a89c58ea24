"""The contact sheet shows every class's own pictures."""

import cv2
import numpy as np
import pandas as pd
import pytest

from cassava_kit.report.sheet import GAP, TILE, contact_sheet


@pytest.fixture
def coloured(tmp_path):
    """A competition whose pictures are of one colour a class; class 4 has a broken picture and one good one."""
    images = tmp_path / "data" / "train_images"
    images.mkdir(parents=True)
    rows = []
    for label in range(5):
        for k in range(3 if label < 4 else 1):
            name = f"{label}{k}.jpg"
            cv2.imwrite(str(images / name), np.full((60, 80, 3), 50 * label + 20, np.uint8))
            rows.append((name, label))
    (images / "broken.jpg").write_bytes(b"no picture")
    rows.append(("broken.jpg", 4))
    pd.DataFrame(rows, columns=["image_id", "label"]).to_csv(tmp_path / "data" / "train.csv", index=False)
    return tmp_path / "data"


def test_each_row_holds_its_class(coloured, tmp_path):
    text = contact_sheet(coloured, tmp_path / "sheet.png", columns=2)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (5 * TILE[0] + 4 * GAP, 2 * TILE[1] + GAP, 3)
    middle = [sheet[label * (TILE[0] + GAP) + 60, 80, 0] for label in range(4)]
    assert np.abs(np.array(middle, int) - [20, 70, 120, 170]).max() <= 2
    last = sheet[4 * (TILE[0] + GAP) + 60, [80, TILE[1] + GAP + 80], 0]
    assert abs(int(last[0]) - 220) <= 2 and last[1] == 128
    assert "row 1: Cassava Bacterial Blight" in text


def test_other_formats_are_refused(coloured, tmp_path):
    with pytest.raises(ValueError, match=r"must be a \.png or \.jpg file"):
        contact_sheet(coloured, tmp_path / "sheet.gif")
    with pytest.raises(ValueError, match="columns must be at least 1"):
        contact_sheet(coloured, tmp_path / "sheet.png", columns=0)
