"""The page on the training images: its figures are the folder's, and no broken file stops it."""

import re
import shutil
from dataclasses import replace

import chrome
import cv2
import numpy as np
import pandas as pd
import pytest
from cells import Cells
from PIL import Image

from cassava_kit.cli.app import run_app
from cassava_kit.cli.verbs import app
from cassava_kit.competition import CASSAVA
from cassava_kit.data.fingerprints import fingerprint
from cassava_kit.data.table import read_table
from cassava_kit.report.eda import (
    QUANTITIES,
    ImageStatistics,
    between_classes,
    copy_groups,
    explore,
    measure_image,
    pixel_statistics,
    sizes,
    stored_size,
)
from cassava_kit.report.eda_page import sample_names, shown_groups, write_eda


def write_image(path, image, quality=95):
    assert cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])


def picture(seed, size=(96, 128)):
    """A blotchy picture unlike any of another seed."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def folder(tmp_path):
    """Thirty different pictures in five classes, number 29 larger than the others."""
    images = tmp_path / "data" / "train_images"
    images.mkdir(parents=True)
    names = [f"{n:02d}.jpg" for n in range(30)]
    for n, name in enumerate(names):
        write_image(images / name, picture(n, (96, 128) if n < 29 else (120, 160)))
    labels = [n % 5 for n in range(30)]
    pd.DataFrame({"image_id": names, "label": labels}).to_csv(tmp_path / "data" / "train.csv", index=False)
    return tmp_path / "data"


def explored(folder):
    return explore(folder, cache=folder.parent / "prints.npz", progress=False)


def page(folder, **kwargs):
    out = folder.parent / "out" / "eda.html"
    told = write_eda(folder, out, cache=folder.parent / "prints.npz", progress=False, **kwargs)
    return told, out, out.read_text(encoding="utf-8")


def plant_trouble(folder):
    """Missing, cut off, empty and foreign files, a folder for a file, a copy of another label, one without a row."""
    images = folder / "train_images"
    (images / "00.jpg").unlink()
    (images / "01.jpg").write_bytes((images / "01.jpg").read_bytes()[:900])
    (images / "02.jpg").write_bytes(b"")
    (images / "03.jpg").write_bytes(b"<html>not found</html>")
    (images / "04.jpg").unlink()
    (images / "04.jpg").mkdir()
    shutil.copy(images / "10.jpg", images / "11.jpg")
    write_image(images / "12.jpg", cv2.convertScaleAbs(picture(13), alpha=0.9, beta=6), 80)
    shutil.copy(images / "20.jpg", images / '<i>"&.jpg')


def test_the_majoritys_share_is_a_floor_for_accuracy_alone(folder, undrawn):
    assert "a model below that has learnt nothing" in page(folder)[2]
    other = page(folder, competition=replace(CASSAVA, metric="macro_f1"))[2]
    assert "of the time.</p>" in other and "learnt nothing" not in other


def test_statistics_of_a_picture_are_those_of_its_pixels(tmp_path):
    image = np.zeros((80, 120, 3), np.uint8)
    image[:] = (200, 100, 50)
    image[:, 60:] = (20, 40, 60)
    Image.fromarray(image).save(tmp_path / "one.png")
    one = measure_image(tmp_path / "one.png")
    values = dict(zip(QUANTITIES, one.values, strict=True))
    luma = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in ((200, 100, 50), (20, 40, 60))]
    assert (one.width, one.height) == (120, 80)
    assert values["brightness"] == pytest.approx(np.mean(luma), abs=1e-3)
    assert values["contrast"] == pytest.approx(abs(luma[0] - luma[1]) / 2, abs=1e-3)
    assert values["saturation"] == pytest.approx(255 * np.mean([1 - 50 / 200, 1 - 20 / 60]), abs=1e-2)
    assert values["sharpness"] == pytest.approx(abs(luma[0] - luma[1]) / 119 / 2, abs=1e-3)
    assert [values[c] for c in ("red", "green", "blue")] == pytest.approx([110, 70, 55], abs=1e-3)
    assert values["kilobytes"] == (tmp_path / "one.png").stat().st_size / 1000


def test_a_jpeg_is_looked_at_small_and_says_the_same(tmp_path):
    image = picture(3, (600, 800))
    write_image(tmp_path / "large.jpg", image)
    one = measure_image(tmp_path / "large.jpg")
    values = dict(zip(QUANTITIES, one.values, strict=True))
    assert (one.width, one.height) == (800, 600)
    assert [values[c] for c in ("red", "green", "blue")] == pytest.approx(image.reshape(-1, 3).mean(axis=0), abs=1.5)


def test_channel_statistics_are_over_all_pixels():
    measured = []
    images = [picture(n) for n in range(4)]
    for image in images:
        rgb = image.reshape(-1, 3).astype(float)
        measured.append(ImageStatistics("", 1, 1, (0, 0, 0, 0, *rgb.mean(axis=0), 0), tuple((rgb**2).mean(axis=0))))
    mean, std = pixel_statistics(measured)
    every = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    assert mean == pytest.approx(every.mean(axis=0))
    assert std == pytest.approx(every.std(axis=0))


def test_share_between_classes():
    labels = np.array([0, 0, 1, 1])
    assert between_classes(np.array([1.0, 1, 3, 3]), labels) == pytest.approx(1)
    assert between_classes(np.array([1.0, 3, 1, 3]), labels) == pytest.approx(0)
    assert between_classes(np.array([0.0, 2, 2, 4]), labels) == pytest.approx(0.5)
    assert between_classes(np.ones(4), labels) == 0


def test_a_whole_folder_has_no_findings(folder, undrawn):
    eda = explored(folder)
    assert eda.counts.tolist() == [6] * 5
    assert len(eda.frame) == 30 and not (eda.missing or eda.unreadable or eda.unlisted or eda.groups)
    assert sizes(eda.frame).to_dict() == {"128 × 96": 29, "160 × 120": 1}
    told, out, html = page(folder)
    assert str(out) in told
    assert "Every row has a readable image" in html and "no near-duplicate images" in html


def test_trouble_is_named_and_counted_and_stops_nothing(folder):
    plant_trouble(folder)
    eda = explored(folder)
    assert eda.missing == ("00.jpg", "04.jpg")
    assert list(eda.unreadable) == ["01.jpg", "02.jpg", "03.jpg"]
    assert eda.unlisted == ('<i>"&.jpg',)
    assert len(eda.frame) == 25 and eda.counts.sum() == 30
    found = {frozenset(g.names): (g.exact, g.conflicting) for g in eda.groups}
    assert found == {
        frozenset({"10.jpg", "11.jpg"}): (True, True),
        frozenset({"12.jpg", "13.jpg"}): (False, True),
        frozenset({"20.jpg", '<i>"&.jpg'}): (True, False),
    }
    assert [g.conflicting for g in eda.groups] == [True, True, False]


def test_classes_without_images_and_rows_without_any(folder, recwarn, undrawn):
    table = pd.read_csv(folder / "train.csv")
    table[table["label"].isin([0, 4])].to_csv(folder / "train.csv", index=False)
    rows = Cells(page(folder)[2]).rows
    assert ["Cassava Green Mottle (CGM)", "2", "0", "0.00\u00a0%"] in rows
    assert next(row for row in rows if row[0] == "2 CGM" and len(row) == 9)[1:] == ["none"] * 8
    for name in table["image_id"][table["label"].isin([0, 4])]:
        (folder / "train_images" / name).unlink()
    text = Cells(page(folder)[2]).text
    assert "12 rows without an image" in text and "no row has a readable image" in text
    assert not [str(w.message) for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_trouble_on_the_page(folder, undrawn):
    plant_trouble(folder)
    _, _, html = page(folder)
    text = Cells(html).text
    assert "2 rows without an image, 3 unreadable images, 1 image that no row names" in text
    assert "3 groups of near-duplicate images (2 of them exact copies), 2 with conflicting labels" in text
    assert "01.jpg: a JPEG cut off before its end" in text and "02.jpg: the file is empty" in text
    assert "10.jpg 0 CBB" in text and "11.jpg 1 CBSD" in text and '<i>"&.jpg no row' in text
    assert "<i>" not in html
    assert html.count('class="group conflict"') == 2


def test_tables_say_what_the_folder_says(tiny_dir, tmp_path, undrawn):
    table = read_table(tiny_dir / "train.csv")
    write_eda(tiny_dir, tmp_path / "eda.html", cache=tmp_path / "prints.npz", progress=False)
    cells = Cells((tmp_path / "eda.html").read_text(encoding="utf-8"))
    rows = {row[0]: row[1:] for row in cells.rows if row}
    counts = table["label"].value_counts()
    share = 100 * counts[3] / len(table)
    assert rows["Cassava Mosaic Disease (CMD)"] == ["3", str(counts[3]), f"{share:.2f}\u00a0%"]
    brightness = [
        cv2.cvtColor(cv2.imread(str(tiny_dir / "train_images" / name)), cv2.COLOR_BGR2GRAY).mean()
        for name in table["image_id"][table["label"] == 4]
    ]
    told = re.fullmatch(r"([\d.]+) \(([\d.]+)–([\d.]+)\)", rows["4 Healthy"][0]).group(2, 1, 3)
    assert [float(text) for text in told] == pytest.approx(np.percentile(brightness, [5, 50, 95]), abs=1.5)


def test_groups_shown_are_bounded_and_conflicts_come_first(folder):
    names = [f"{n}.jpg" for n in range(400)]
    prints = fingerprint([folder / "train_images" / f"{n % 20:02d}.jpg" for n in range(400)], progress=False)
    pairs = copy_groups(names, {name: int(name[:-4]) % 3 == 0 for name in names}, prints)
    assert len(pairs) == 20 and all(len(group.names) == 20 for group in pairs)
    many = [*pairs * 5, *copy_groups(names, {}, prints) * 5]
    shown = shown_groups(many)
    assert len(shown) == 60 and [g.conflicting for g in shown] == [True] * 40 + [False] * 20


def test_sample_is_of_each_class_and_the_same_each_time(folder):
    eda = explored(folder)
    first = sample_names(eda, columns=4)
    assert first == sample_names(eda, columns=4)
    assert all(int(name[:2]) % 5 == k for k, names in enumerate(first) for name in names)
    assert [len(names) for names in sample_names(eda, columns=8)] == [6] * 5


def test_the_same_folder_makes_the_same_files(folder):
    _, out, first = page(folder)
    pngs = {path.name: path.read_bytes() for path in out.parent.glob("*.png")}
    drawn = ("classes", "brightness", "contrast", "saturation", "green", "grid")
    assert set(pngs) == {f"eda-{name}.png" for name in drawn}
    assert page(folder)[2] == first
    assert {path.name: path.read_bytes() for path in out.parent.glob("*.png")} == pngs
    for path in out.parent.glob("*.png"):
        image = cv2.imread(str(path))
        assert min(image.shape[:2]) > 200 and image.std() > 5, path


def test_size_of_the_stored_picture(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")
    assert stored_size((tmp_path / "a.jpg").read_bytes()) == (30, 20)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: shutil.rmtree(d / "train_images"), "no folder"),
        (lambda d: (d / "train.csv").unlink(), "train.csv"),
        (lambda d: (d / "train.csv").write_text("image_id,label\n00.jpg,9\n"), "line 2"),
        (lambda d: [p.write_bytes(b"x") for p in (d / "train_images").iterdir()], "no readable image"),
    ],
)
def test_errors_are_one_line(folder, capsys, spoil, message):
    spoil(folder)
    assert run_app(app, ["eda", "--data", str(folder), "--out", str(folder.parent / "eda.html")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not (folder.parent / "eda.html").exists()


def test_the_page_must_be_html(folder, capsys):
    assert run_app(app, ["eda", "--data", str(folder), "--out", "eda.pdf"]) == 2
    assert "must be an .html file" in capsys.readouterr().err


def test_verb_writes_page_and_pictures(tiny_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path / "cache"))
    assert run_app(app, ["eda", "--data", str(tiny_dir), "--out", str(tmp_path / "x" / "look.html")]) == 0
    assert "look.html" in capsys.readouterr().out
    assert (tmp_path / "x" / "look-grid.png").is_file()
    assert (tmp_path / "cache" / "fingerprints.npz").is_file()


def test_in_the_browser(folder, tmp_path):
    plant_trouble(folder)
    _, out, html = page(folder)
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:)", html)
    browser = chrome.open_chromium(tmp_path / "profile")
    try:
        chrome.check_page(browser, out)
        headings = [h.text for h in browser.find_elements("css selector", "h2")]
        assert headings == [
            "Classes",
            "Pictures",
            "Test images",
            "Brightness and colour",
            "Sizes",
            "Copies",
            "Files",
        ]
        assert len(browser.find_elements("css selector", "figure.chart svg")) == 1 + 4
        shown = browser.execute_script("return [...document.images].map(i => [i.naturalWidth, i.clientWidth])")
        assert len(shown) == 25 + 6 + 1 and all(natural > 40 and shown > 40 for natural, shown in shown)
        ink = "return getComputedStyle(document.querySelector('figure.chart svg text')).fill"
        chrome.show(browser, out, scheme="light")
        light = browser.execute_script(ink)
        chrome.show(browser, out, scheme="dark")
        dark = browser.execute_script(ink)
        # Charts take the page's ink: dark on light, light on dark.
        assert sum(map(int, re.findall(r"\d+", light))) < 150 and sum(map(int, re.findall(r"\d+", dark))) > 600
    finally:
        browser.quit()
