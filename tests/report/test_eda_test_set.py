"""Test images beside training images: the test statistic is the textbook's, and the sentence says what was found."""

import cv2
import numpy as np
import pandas as pd
import pytest
from cells import Cells
from scipy.stats import ks_2samp

from cassava_kit.competition import CASSAVA
from cassava_kit.report.eda import explore
from cassava_kit.report.eda_page import write_eda
from cassava_kit.report.eda_test_set import (
    COMPARED,
    ENOUGH,
    MOST_MEASURED,
    compare_sets,
    find_differences,
    format_spread,
)


def table(n, seed, **changed):
    """Random statistics of `n` images, equal in distribution but for the quantities given."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({name: rng.normal(100, 20, n) for name in COMPARED})
    return frame.assign(**{name: frame[name] + shift for name, shift in changed.items()})


def slow_distance(a, b):
    """The largest difference between two empirical distribution functions, value by value."""
    return max(abs(sum(x <= v for x in a) / len(a) - sum(x <= v for x in b) / len(b)) for v in [*a, *b])


def test_distance_and_p_are_those_of_the_definition():
    train, test = table(60, 0), table(40, 1, brightness=15)
    found = {one.quantity: one for one in find_differences(train, test)}
    assert set(found) == set(COMPARED)
    for name, one in found.items():
        assert one.distance == pytest.approx(slow_distance(train[name], test[name]))
    raw = sorted((float(ks_2samp(train[n], test[n], method="asymp").pvalue), n) for n in COMPARED)
    # Holm by hand: the smallest p-value times the number of tests, each next times one less, never falling.
    highest = 0.0
    for rank, (p, name) in enumerate(raw):
        highest = max(highest, min(1.0, p * (len(raw) - rank)))
        assert found[name].p_value == pytest.approx(highest)
    assert found["brightness"].large and not found["contrast"].found


def test_a_shift_that_is_sure_but_small_is_slight():
    train, test = table(20_000, 0), table(4000, 1, blue=2.0)
    found = {one.quantity: one for one in find_differences(train, test)}
    assert found["blue"].found and not found["blue"].large and found["blue"].distance < 0.1


def write_images(folder, n, *, level, seed, size=(60, 80)):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for k in range(n):
        small = rng.integers(0, 60, (6, 8, 3)) + level
        image = cv2.resize(small.astype(np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{seed}{k:03d}.jpg"), image)


@pytest.fixture
def folder(tmp_path):
    """Fifty training images about level 80 in five classes, and no test images."""
    write_images(tmp_path / "data" / "train_images", 50, level=80, seed=1)
    names = sorted(path.name for path in (tmp_path / "data" / "train_images").iterdir())
    pd.DataFrame({"image_id": names, "label": np.arange(50) % 5}).to_csv(tmp_path / "data" / "train.csv", index=False)
    return tmp_path / "data"


def beside(folder):
    eda = explore(folder, cache=folder.parent / "prints.npz", progress=False)
    return compare_sets(folder, eda.frame, CASSAVA, progress=False)


def text_of(folder):
    out = folder.parent / "eda.html"
    write_eda(folder, out, cache=folder.parent / "prints.npz", progress=False)
    return Cells(out.read_text(encoding="utf-8"))


def test_a_test_set_of_the_same_kind_looks_like_training(folder, undrawn):
    write_images(folder / "test_images", 40, level=80, seed=2)
    found = beside(folder)
    assert found.alike is True and len(found.frame) == 40
    page = text_of(folder)
    assert page.text.count("The test set looks like the training set: size, brightness") == 2
    assert page.row("80 × 60") == ["50", "40"]
    assert page.row("width")[:3] == ["80 (80–80)", "80 (80–80)", "0.000"]


def test_a_brighter_and_larger_test_set_is_named_with_its_figures(folder, undrawn):
    write_images(folder / "test_images", 40, level=150, seed=2, size=(90, 120))
    (folder / "test_images" / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    found = beside(folder)
    brightness = [
        np.median([cv2.cvtColor(cv2.imread(str(p)), cv2.COLOR_BGR2GRAY).mean() for p in sorted(f.glob("[12]*.jpg"))])
        for f in (folder / "train_images", folder / "test_images")
    ]
    assert found.alike is False and list(found.unreadable) == ["broken.jpg"]
    sentence = found.sentence()
    assert sentence.startswith("The test set does not look like the training set: width 80 (80–80) in training, 120")
    told = next(part for part in sentence.split("; ") if part.startswith("brightness"))
    assert told.startswith(f"brightness {brightness[0]:.0f} (") and f"in training, {brightness[1]:.0f} (" in told
    told = write_eda(folder, folder.parent / "eda.html", cache=folder.parent / "prints.npz", progress=False)
    assert told.splitlines()[1] == sentence
    page = text_of(folder)
    assert "41 test images, 1 of them cannot be read. The test set does not look like" in page.text
    assert page.row("120 × 90") == ["0", "40"] and page.row("brightness")[-1] == "large"


@pytest.mark.parametrize(("n", "message"), [(0, "There are no test images"), (1, "1 readable test image: too few")])
def test_none_or_one_test_image_is_no_error(folder, undrawn, n, message):
    if n:
        write_images(folder / "test_images", n, level=80, seed=2)
    found = beside(folder)
    assert found.alike is None and found.differences == ()
    assert text_of(folder).text.count(message) == 2


def test_enough_is_enough_on_both_sides():
    assert find_differences(table(ENOUGH - 1, 0), table(500, 1)) == ()
    assert find_differences(table(500, 0), table(ENOUGH - 1, 1)) == ()
    assert len(find_differences(table(ENOUGH, 0), table(ENOUGH, 1))) == len(COMPARED)


def test_of_many_test_images_a_part_is_measured(folder, undrawn, monkeypatch):
    write_images(folder / "test_images", 40, level=80, seed=2)
    assert MOST_MEASURED > 1000
    monkeypatch.setattr("cassava_kit.report.eda_test_set.MOST_MEASURED", 25)
    found = beside(folder)
    assert len(found.frame) == 25 and len(found.names) == 40
    assert beside(folder).frame["image_id"].tolist() == found.frame["image_id"].tolist(), "the same each time"
    assert "40 test images, of which 25 random ones were measured" in text_of(folder).text


def test_spread():
    assert format_spread(np.arange(101.0)) == "50 (5–95)"
    assert format_spread(np.linspace(1, 3, 101)) == "2.0 (1.1–2.9)"
    assert format_spread(np.array([])) == "none"
