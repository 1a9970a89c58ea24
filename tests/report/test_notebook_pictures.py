"""Pictures in notebooks: what they count and choose, for 2 to 40 classes, and that a failure costs nothing else."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_report import guesses, write_run

from cassava_kit.competition import CASSAVA, Competition
from cassava_kit.data.folds import write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import read_competition
from cassava_kit.report.charts import INK, Chart
from cassava_kit.report.notebook import eda_pictures, fold_pictures, pretrain_pictures, show
from cassava_kit.report.notebook.show import CaptionedPhoto


def make_competition(folder: Path, n_classes: int, per_class: int = 2, **facts: Any) -> Competition:
    """A folder of small random photographs, `per_class` of each class, one test image, and its facts."""
    generator = np.random.default_rng(n_classes)
    names = [f"{k}.jpg" for k in range(n_classes * per_class)]
    for kind, chosen in (("train_images", names), ("test_images", ["t.jpg"])):
        (folder / kind).mkdir(parents=True)
        for name in chosen:
            pixels = generator.integers(0, 255, (6, 8, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / kind / name), cv2.resize(pixels, (64, 48), interpolation=cv2.INTER_CUBIC))
    labels = [k % n_classes for k in range(len(names))]
    pd.DataFrame({"image_id": names, "label": labels}).to_csv(folder / "train.csv", index=False)
    (folder / "sample_submission.csv").write_text("image_id,label\nt.jpg,0\n")
    classes = tuple(f"A class with quite a long name, number {k}" for k in range(n_classes))
    return Competition(slug="some-classes", title="Some classes", classes=classes, **facts)


def shown_parts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `show` displays from now on."""
    parts: list[Any] = []
    monkeypatch.setattr(show, "display_part", parts.append)
    return parts


def pixels_of(chart: Chart) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(chart.png)).convert("RGB"))


def charts_in(parts: Any) -> list[Chart]:
    found = parts if isinstance(parts, list | tuple) else [parts]
    return [one for part in found for one in (part if isinstance(part, tuple) else (part,)) if isinstance(one, Chart)]


def test_a_drawing_that_fails_is_named_and_raises_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def unlucky() -> None:
        raise ZeroDivisionError("no images")

    show.show(unlucky)
    assert capsys.readouterr().out == "unlucky is left out: ZeroDivisionError: no images\n"


def test_charts_side_by_side_are_cards_with_their_descriptions() -> None:
    one = show.photo_sheet(
        "a", 'two "quoted" <leaves>', {"": [CaptionedPhoto(np.zeros((3, 4, 3), np.uint8))]}, columns=1
    )
    page = show.side_by_side([one, one]).data
    assert page.count("data:image/jpeg;base64,") == 2 and page.count("background:#fff") == 2
    assert 'alt="two &quot;quoted&quot; &lt;leaves&gt;"' in page


def test_colours_read_on_their_cards() -> None:
    """Contrast by WCAG 2.1, worked out here: text 4.5 to 1, frames 3 to 1, on white."""

    def luminance(color: str) -> float:
        parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert 1.05 / (luminance(INK) + 0.05) > 4.5
    assert min(1.05 / (luminance(color) + 0.05) for color in (show.RIGHT_FRAME, show.WRONG_FRAME)) > 3


def test_a_photograph_keeps_its_shape() -> None:
    assert show.fit_box((100, 200), (1.0, 1.0, 4.0, 3.0)) == (1.0, 1.5, 4.0, 2.0)
    assert show.fit_box((50, 50), (0.0, 0.0, 4.0, 3.0)) == (0.5, 0.0, 3.0, 3.0)
    red = CaptionedPhoto(np.full((30, 40, 3), (255, 0, 0), np.uint8), "one\ntwo", right=True)
    sheet = pixels_of(show.photo_sheet("s", "s", {"heading": [red] * 4}, columns=3))
    reds = (sheet[:, :, 0] > 200) & (sheet[:, :, 1] < 60)
    assert (np.diff(reds.any(axis=1).astype(int)) == 1).sum() == 2, "four in lines of three are two lines"
    wide, high = reds[:, :190].any(axis=0).sum(), (reds[:200, :190].any(axis=1)).sum()
    assert wide / high == pytest.approx(4 / 3, rel=0.06)


def test_a_file_that_is_no_image_is_gray_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    photo = show.read_photo(tmp_path / "a.jpg", "a.jpg")
    assert photo.caption == "a.jpg\ncannot be read" and len(np.unique(photo.pixels)) == 1


@pytest.mark.parametrize("n_classes", [2, 13, 40])
def test_the_first_look_takes_any_number_of_classes(tmp_path: Path, n_classes: int) -> None:
    competition = make_competition(tmp_path, n_classes)
    table = read_competition(tmp_path, competition)
    assert charts_in(eda_pictures.draw_class_shares(table, competition))
    parts = eda_pictures.class_sheet(table, 3, competition)
    assert len(charts_in(parts)) == min(n_classes, 12)
    left_out = [part for part in parts if isinstance(part, str)]
    assert left_out == (
        [f"{n_classes - 12} classes between the largest and the smallest are not shown"] * (n_classes > 12)
    )
    parts = eda_pictures.sizes_and_brightness(tmp_path, 50, competition)
    assert len(charts_in(parts)) == 2 and "only 1 test images are mounted here: too few to compare brightness" in parts
    assert eda_pictures.copies(table, 1000, competition) == [f"no near-duplicates among {2 * n_classes} images"]
    assert eda_pictures.unlisted_images(table) == ["every image of the folder has a row"]


def test_of_many_classes_the_largest_and_the_smallest_are_shown() -> None:
    assert eda_pictures.choose_classes(np.array([5, 1, 9, 3, 7]), most=3) == [1, 2, 4]
    assert eda_pictures.choose_classes(np.array([5, 1]), most=3) == [0, 1]


def test_planted_copies_with_another_label_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    competition = make_competition(tmp_path, 3, per_class=3)
    for source, copy in (("0", "8"), ("1", "4")):  # labels 0 and 2; 1 and 1
        shutil.copy(tmp_path / "train_images" / f"{source}.jpg", tmp_path / "train_images" / f"{copy}.jpg")
    shutil.copy(tmp_path / "train_images" / "0.jpg", tmp_path / "train_images" / "extra.jpg")
    table, drawn = read_competition(tmp_path, competition), []
    monkeypatch.setattr(eda_pictures, "split_sheet", lambda name, alt, photos, columns: drawn.append(list(photos)))
    said = eda_pictures.copies(table, 100, competition)[0]
    assert said == (
        "2 of 9 images are near-duplicates of another; keep them in one fold\n"
        "1 of the 2 groups have contradicting labels (orange)"
    )
    assert [photo.caption.split("\n")[0] for photo in drawn[0]] == ["1. 0", "1. 8", "2. 1", "2. 4"]
    assert [photo.right for photo in drawn[0]] == [False, False, None, None]
    assert eda_pictures.unlisted_images(table)[0].startswith("1 images have no row")  # type: ignore[attr-defined]


def test_of_a_group_of_copies_two_with_different_labels_are_shown() -> None:
    names = ("a", "b", "c")
    assert eda_pictures.differing_pair(names, (1, 1, 2)) == [("a", 1), ("c", 2)]
    assert eda_pictures.differing_pair(names, (1, None, 2)) == [("a", 1), ("c", 2)]
    assert eda_pictures.differing_pair(names, (1, None, 1)) == [("a", 1), ("b", None)]


@pytest.fixture
def run(tiny_table: Any, tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A run of three folds on the tiny competition, its fold file, and its probabilities in the file's order."""
    split = split_folds(tiny_table.frame, n_splits=3, seed=0)
    write_folds(tmp_path / "folds.csv", split)
    probabilities = guesses(split.frame["label"].to_numpy(), 2.0, 1)
    write_run(tmp_path / "mine", split, probabilities)
    return tmp_path / "mine", tmp_path / "folds.csv", probabilities


def test_the_table_of_folds_has_the_scores_worked_out_by_hand(run: Any, tiny_dir: Path) -> None:
    folder, folds, probabilities = run
    frame = pd.read_csv(folds)
    right = probabilities.argmax(axis=1) == frame["label"].to_numpy()
    table, said = fold_pictures.FoldPictures(folder, folds, tiny_dir, CASSAVA).table()
    for fold in range(3):
        mine = right[(frame["fold"] == fold).to_numpy()]
        error = np.sqrt(mine.mean() * (1 - mine.mean()) / len(mine))
        row = table.loc[str(fold)]
        assert row["accuracy"] == f"{mine.mean():.4f} ± {error:.4f}" and row["images"] == len(mine)
        assert (row["epochs"], row["minutes"]) == ("4", "1.5")
    assert table.loc["all", "accuracy"].startswith(f"{right.mean():.4f} ±") and "standard error" in said
    share = frame["label"].value_counts().max() / len(frame)
    assert table.loc["majority class", "accuracy"].startswith(f"{share:.4f} ±")


def test_mistakes_are_the_least_probable_labels(run: Any, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, folds, probabilities = run
    frame, drawn = pd.read_csv(folds), []
    labels = frame["label"].to_numpy()
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    worst = wrong[np.argsort(probabilities[wrong, labels[wrong]])][:3]
    monkeypatch.setattr(fold_pictures, "split_sheet", lambda name, alt, photos, columns: drawn.append(list(photos)))
    pictures = fold_pictures.FoldPictures(folder, folds, tiny_dir, CASSAVA)
    pictures.mistakes(3)
    short = ["CBB", "CBSD", "CGM", "CMD", "Healthy"]
    assert [photo.caption for photo in drawn[0]] == [
        f"given {short[labels[k]]}\nsays {short[probabilities[k].argmax()]}, {probabilities[k].max():.0%}"
        for k in worst
    ]
    assert len(charts_in(pictures.confusion())) == 2


def test_the_most_confused_of_many_classes_are_shown() -> None:
    counts = np.diag(np.full(20, 9))
    counts[3, 7], counts[7, 3], counts[11, 3] = 5, 2, 1
    assert fold_pictures.most_confused(counts, 3) == [3, 7, 11]
    assert fold_pictures.most_confused(counts[:3, :3], 3) == [0, 1, 2]


def test_curves_follow_the_files_and_survive_a_half_written_one(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, drawn = run[0], []
    live = fold_pictures.LiveCurves(folder)
    monkeypatch.setattr(live, "_display", drawn.append)
    live()
    live()
    assert len(drawn) == 1, "drawn anew only where a file has changed"
    (folder / "fold2" / "metrics.csv").write_text('epoch,train_loss\n0,"')
    live()
    assert len(drawn) == 1 and "curves: " in capsys.readouterr().out
    fold_pictures.LiveCurves(folder / "nothing")()


def test_neighbours_are_the_largest_cosines() -> None:
    angles = np.array([0.0, 0.1, 3.0, -0.05, 1.5])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert pretrain_pictures.nearest_rows(features, 0, 2) == [3, 1]
    assert pretrain_pictures.nearest_rows(features[:2], 0, 5) == [1]
    # Nearest labelled neighbours: 0 and 1 are each other's, 4 has 1, 2 has 4; the fourth image has no label.
    assert pretrain_pictures.share_of_same(features, [7, 7, 5, None, 5]) == pytest.approx(3 / 4)


@pytest.mark.slow
def test_pretraining_is_drawn_from_what_a_run_leaves(tmp_path: Path) -> None:
    """Curves, views and neighbours of a run of one epoch, with store and, as the papers do, from files."""
    from cassava_kit.training.ssl.folder import gather_images
    from cassava_kit.training.ssl.pretrain import pretrain
    from cassava_kit.training.ssl.recipes import pretrain_recipe

    competition = make_competition(tmp_path / "data", 2, per_class=5)
    paths, labels = gather_images(tmp_path / "data", [], competition)
    settings = ["epochs=1", "warmup_epochs=0", "batch_size=8", "watch_every=1"]
    config = pretrain_recipe("small_simclr").with_settings(settings)
    pretrain(config, paths, tmp_path / "run", labels=labels)
    assert len(charts_in(pretrain_pictures.pretraining_curves(tmp_path / "run"))) >= 3
    assert charts_in(pretrain_pictures.view_pairs(tmp_path / "run", tmp_path / "data", 3, competition))
    sheets = charts_in(pretrain_pictures.neighbours(tmp_path / "run", tmp_path / "data", 2, competition))
    assert len(sheets) == 2
    for store in (config.store_size, None):
        plain = {} if store else {"channel_gain": 0.0, "spread": 1.0, "background_swap_prob": 0.0}
        view = config.views[0].model_copy(update=plain)
        one, other = pretrain_pictures.cut_pair(
            config.model_copy(update={"store_size": store, "views": (view,)}), paths[:3]
        )
        assert [view.shape for view in one] == [(view.size, view.size, 3)] * 3 and one[0].dtype == np.uint8
        assert not np.array_equal(one[0], other[0]) and np.ptp(one[0]) > 20
