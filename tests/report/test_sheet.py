"""The contact sheet shows every class's own pictures under its name."""

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFont

from cassava_kit.report.fonts import fitting_font, installed_fonts, shorten
from cassava_kit.report.sheet import BAND, GAP, LETTERS, TILE, contact_sheet, draw_band, draw_sheet, four_to_three


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


def tops():
    """The first row of pixels of each class's pictures."""
    return [label * (BAND + TILE[0] + GAP) + BAND for label in range(5)]


def written(text, width):
    """A band with the text as Pillow writes it, by the font file's own name."""
    from matplotlib import font_manager

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), LETTERS)
    band = Image.new("RGB", (width, BAND), "white")
    ImageDraw.Draw(band).text((GAP, BAND / 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(band)


def test_each_row_holds_its_class_under_its_name(coloured, tmp_path):
    text = contact_sheet(coloured, tmp_path / "sheet.png", columns=2)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (5 * (BAND + TILE[0] + GAP), 2 * TILE[1] + GAP, 3)
    middle = [sheet[top + 60, 80, 0] for top in tops()[:4]]
    assert np.abs(np.array(middle, int) - [20, 70, 120, 170]).max() <= 2
    last = sheet[tops()[4] + 60, [80, TILE[1] + GAP + 80], 0]
    assert abs(int(last[0]) - 220) <= 2 and last[1] == 128
    assert (sheet[: tops()[0]] == written("Cassava Bacterial Blight (CBB)", sheet.shape[1])).all()
    assert (sheet[tops()[4] - BAND : tops()[4]] == written("Healthy", sheet.shape[1])).all()
    assert "2 pictures a class by given label, 5 classes" in text


def test_a_name_too_long_is_cut_and_stays_inside(coloured):
    for name in ("a very long name of a class, " * 4, "M" * 60, "█" * 60):
        band = draw_band(name, 160)
        ink = np.flatnonzero((band < 128).any(axis=(0, 2)))
        assert band.shape == (BAND, 160, 3) and ink.min() >= GAP and 120 < ink.max() < 160 - GAP
    assert shorten("a very long name", 10) == "a very lo…" and shorten("short", 10) == "short"


def test_a_name_is_written_by_a_font_that_has_its_characters():
    wide = [name for name in installed_fonts() if "CJK" in name or "WenQuanYi" in name]
    assert fitting_font("Grün Ωμέγα", 15).path == fitting_font("Healthy", 15).path
    if not wide:
        assert fitting_font("健康", 15).path == fitting_font("Healthy", 15).path, "boxes, and no error"
    else:
        assert fitting_font("健康", 15).path == installed_fonts()[wide[0]]


def test_the_middle_is_cut_to_four_by_three():
    tall = np.arange(90 * 40).reshape(90, 40, 1).repeat(3, axis=2)
    assert (four_to_three(tall) == tall[30:60]).all()
    wide = tall.transpose(1, 0, 2)
    assert four_to_three(wide).shape[:2] == (40, 53)
    assert four_to_three(np.zeros((1, 1, 3))).shape == (1, 1, 3)


def test_forty_classes_of_any_name_make_a_sheet():
    names = [f"класс {k} <b>$x$ 健康" for k in range(40)]
    sheet = draw_sheet(names, [[np.zeros((30, 40, 3), np.uint8)] * (k % 3) for k in range(40)])
    assert sheet.shape == (40 * (BAND + TILE[0] + GAP), 2 * TILE[1] + GAP, 3)
    assert draw_sheet(["none"], [[]]).shape == (BAND + TILE[0] + GAP, TILE[1], 3)


def test_other_formats_are_refused(coloured, tmp_path):
    with pytest.raises(ValueError, match=r"must be a \.png or \.jpg file"):
        contact_sheet(coloured, tmp_path / "sheet.gif")
    with pytest.raises(ValueError, match="columns must be at least 1"):
        contact_sheet(coloured, tmp_path / "sheet.png", columns=0)
