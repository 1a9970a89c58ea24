"""The sample competition: Kaggle's layout, honest truth, and pictures that show their class."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cassava_kit.competition import CASSAVA
from cassava_kit.data.images import decode, load_image, resize
from cassava_kit.data.sample import make as sample
from cassava_kit.data.sample.leaves import draw_photo
from cassava_kit.data.table import read_table
from cassava_kit.data.tfrecords.records import TFRecordIndex

N_TRAIN, N_TEST = 160, 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample.make_sample(tmp_path_factory.mktemp("sample"), n_train=N_TRAIN, n_test=N_TEST)


@pytest.fixture(scope="module")
def train(made: Path) -> pd.DataFrame:
    return pd.read_csv(made / "train.csv", dtype={"image_id": str})


@pytest.fixture(scope="module")
def truth(made: Path) -> pd.DataFrame:
    return pd.read_csv(made / "truth.csv", dtype=str, keep_default_na=False).astype({"true_label": int})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path)).astype(np.float32)


def thumbnail(path: Path) -> np.ndarray:
    return cv2.resize(read(path), (16, 12), interpolation=cv2.INTER_AREA).ravel()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_layout_is_kaggles(made: Path, train: pd.DataFrame) -> None:
    assert names(made) == [
        "label_num_to_disease_map.json",
        "sample.json",
        "sample_submission.csv",
        "test_images",
        "train.csv",
        "train_images",
        "train_tfrecords",
        "truth.csv",
    ]
    assert list(train.columns) == ["image_id", "label"]
    assert train["image_id"].is_unique and train["image_id"].is_monotonic_increasing
    assert train["image_id"].str.fullmatch(r"\d{7,10}\.jpg").all()
    submission = pd.read_csv(made / "sample_submission.csv", dtype={"image_id": str})
    assert list(submission.columns) == ["image_id", "label"]
    assert submission["image_id"].tolist() == names(made / "test_images") and len(submission) == N_TEST
    assert submission["label"].between(0, 4).all()
    assert names(made / "train_tfrecords") == [f"ld_train0{k}-{N_TRAIN // 4}.tfrec" for k in range(4)]


def test_label_map_is_written_as_the_competition_writes_it(made: Path) -> None:
    content = (made / "label_num_to_disease_map.json").read_bytes()
    assert content.startswith(b'{"0": "Cassava Bacterial Blight (CBB)", "1": ') and content.endswith(b'"Healthy"}')
    assert list(json.loads(content).values()) == list(CASSAVA.classes)
    data = os.environ.get("CASSAVA_KIT_REAL_DATA") or Path(__file__).parents[4] / "shared" / "data"
    real = Path(data) / "cassava" / "label_num_to_disease_map.json"
    if not real.is_file():
        pytest.skip("the real competition folder is not here")
    assert content == real.read_bytes()


def test_photographs_are_4_to_3_jpegs(made: Path, train: pd.DataFrame) -> None:
    for path in sorted((made / "train_images").iterdir()):
        content = path.read_bytes()
        assert content[:2] == b"\xff\xd8" and content[-2:] == b"\xff\xd9"
    assert read(made / "train_images" / train["image_id"][0]).shape == (120, 160, 3)


def test_classes_have_the_competitions_shares(train: pd.DataFrame, truth: pd.DataFrame) -> None:
    ideal = np.array([1087, 2189, 2386, 13158, 2577]) / 21397
    for labels, n in (
        (train["label"], N_TRAIN),
        (truth["true_label"][truth["image_id"].isin(train["image_id"])], N_TRAIN),
    ):
        assert np.abs(np.bincount(labels, minlength=5) - ideal * n).max() <= 1


def test_a_tenth_of_the_labels_is_wrong_and_truth_agrees_elsewhere(
    made: Path, train: pd.DataFrame, truth: pd.DataFrame
) -> None:
    assert list(truth.columns) == ["image_id", "true_label", "duplicate_of"]
    assert sorted(truth["image_id"]) == sorted([*train["image_id"], *names(made / "test_images")])
    rows = train.merge(truth)
    wrong = rows["label"] != rows["true_label"]
    assert len(rows) == N_TRAIN and wrong.sum() == 16


def test_the_noise_level_is_the_one_asked_for() -> None:
    plan = sample._plan(500, 10, noise=0.0, seed=3)
    assert (plan["label"] == plan["true_label"]).all()
    plan = sample._plan(500, 10, noise=0.2, seed=3)
    train = plan[plan["split"] == "train"]
    assert (train["label"] != train["true_label"]).sum() == 100
    assert (plan["label"] == plan["true_label"])[plan["split"] != "train"].all()


def test_near_duplicates_are_nearly_the_same_picture(made: Path, truth: pd.DataFrame) -> None:
    copies = truth[truth["duplicate_of"] != ""]
    assert len(copies) == 3
    images = made / "train_images"
    names_there = names(images)
    likeness = np.corrcoef([thumbnail(images / name) for name in names_there])
    np.fill_diagonal(likeness, 0)
    pairs = list(zip(copies["image_id"], copies["duplicate_of"], strict=True))
    for copy, original in pairs:
        assert (images / copy).read_bytes() != (images / original).read_bytes()
        row = likeness[names_there.index(copy)]
        assert row[names_there.index(original)] > 0.97
        assert np.sum(row > 0.97) < 4, "other pictures differ"
    levels = [read(images / copy).mean() / read(images / original).mean() for copy, original in pairs]
    assert max(abs(level - 1) for level in levels) > 0.01, "brighter or darker, not only compressed again"
    labels = truth.set_index("image_id")["true_label"]
    assert (labels[copies["image_id"]].to_numpy() == labels[copies["duplicate_of"]].to_numpy()).all()


def test_some_training_images_have_no_row(made: Path, train: pd.DataFrame, truth: pd.DataFrame) -> None:
    unlisted = set(names(made / "train_images")) - set(train["image_id"])
    assert 1 <= len(unlisted) <= 5
    assert not unlisted & set(truth["image_id"])
    assert set(train["image_id"]) <= set(names(made / "train_images"))


def test_tfrecords_hold_the_same_bytes_as_the_files(made: Path, train: pd.DataFrame) -> None:
    label = dict(zip(train["image_id"], train["label"], strict=True))
    seen = []
    index = TFRecordIndex(made / "train_tfrecords")
    for image_id, place in index.places.items():
        assert index.read(image_id) == (made / "train_images" / image_id).read_bytes()
        assert place.label == label[image_id]
        seen.append(image_id)
    assert sorted(seen) == sorted(label)


def test_csv_and_tfrecords_give_the_same_table_and_pixels(made: Path) -> None:
    index = TFRecordIndex(made / "train_tfrecords")
    table = read_table(made / "train.csv")
    pd.testing.assert_frame_equal(index.table(), table)
    for image_id in table["image_id"][:5]:
        from_file = load_image(made / "train_images" / image_id, (64, 48))
        assert (resize(decode(index.read(image_id)), (64, 48)) == from_file).all()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second, other = (
        contents(sample.make_sample(tmp_path / name, n_train=50, n_test=5, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second
    assert first["train.csv"] != other["train.csv"]


def test_a_photo_depends_on_its_generator_alone() -> None:
    again = [draw_photo(3, np.random.default_rng(5)) for _ in range(2)]
    assert (again[0] == again[1]).all()
    assert (draw_photo(3, np.random.default_rng(6)) != again[0]).any()
    assert again[0].dtype == np.uint8 and again[0].shape == (120, 160, 3)


def draw_noise(label: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)


def small_sample(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Make `ensure_sample` quick, and list every folder it makes."""
    calls: list[Path] = []
    make = sample.make_sample
    monkeypatch.setattr("cassava_kit.data.sample.leaves.draw_photo", draw_noise)

    def make_small(folder: Path) -> Path:
        calls.append(folder)
        return make(folder, n_train=50, n_test=5)

    monkeypatch.setattr(sample, "make_sample", make_small)
    return calls


def test_ensure_makes_the_sample_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = small_sample(monkeypatch)
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path))
    folder = sample.ensure_sample()
    assert folder == tmp_path / "sample-v1" and len(calls) == 1
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert sample.ensure_sample() == folder and len(calls) == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert names(tmp_path) == ["sample-v1"], "no scratch folder stays"


@pytest.mark.parametrize("lost", ["train.csv", "test_images", "train_images", "train_tfrecords"])
def test_ensure_mends_a_sample_that_lost_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    calls = small_sample(monkeypatch)
    folder = sample.ensure_sample(tmp_path / "s")
    whole = contents(folder)
    victim = folder / lost if lost.endswith("csv") else next((folder / lost).iterdir())
    victim.unlink()
    assert sample.ensure_sample(folder) == folder and len(calls) == 2
    assert contents(folder) == whole


def test_what_is_not_the_samples_is_never_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = small_sample(monkeypatch)
    folder = sample.ensure_sample(tmp_path / "s")
    (folder / "test_images" / "mine.jpg").write_bytes(b"mine")
    (folder / "runs").mkdir()
    assert sample.ensure_sample(folder) == folder and len(calls) == 1
    next((folder / "train_images").iterdir()).unlink()
    (folder / "test_images" / "mine.jpg").unlink()
    with pytest.raises(ValueError, match="has lost files of the sample, and runs is not part of it"):
        sample.ensure_sample(folder)
    assert (folder / "runs").is_dir() and names(tmp_path) == ["s"]


def test_a_failed_ensure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> Path:
        folder.mkdir()
        (folder / "train.csv").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(sample, "make_sample", fail)
    with pytest.raises(OSError, match="disk full"):
        sample.ensure_sample(tmp_path / "s")
    assert names(tmp_path) == []


def test_ensure_gives_way_to_a_faster_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cassava_kit.data.sample.leaves.draw_photo", draw_noise)
    make, folder = sample.make_sample, tmp_path / "s"

    def make_while_another_finishes(made: Path) -> Path:
        make(folder, n_train=50, n_test=5, seed=9)
        return make(made, n_train=50, n_test=5)

    monkeypatch.setattr(sample, "make_sample", make_while_another_finishes)
    assert sample.ensure_sample(folder) == folder
    assert json.loads((folder / "sample.json").read_text())["seed"] == 9
    assert names(tmp_path) == ["s"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for make in (sample.ensure_sample, sample.make_sample):
        with pytest.raises(ValueError, match="new or empty folder"):
            make(tmp_path)
    assert names(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize(("arguments", "message"), [({"n_train": 10}, "n_train"), ({"noise": 0.9}, "noise")])
def test_impossible_samples_are_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample.make_sample(tmp_path / "s", **arguments)
    assert names(tmp_path) == []


def leaf_features(image: np.ndarray) -> np.ndarray:
    """What a person would look for, in numbers: how yellow, brown, pale and patchy the picture's green parts are."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    centre = lab[20:100, 30:130]
    fine = centre - cv2.GaussianBlur(centre, (0, 0), 2.0)
    coarse = cv2.GaussianBlur(centre, (0, 0), 2.0) - cv2.GaussianBlur(centre, (0, 0), 8.0)
    parts = [centre.mean((0, 1)), centre.std((0, 1)), fine.std((0, 1)), coarse.std((0, 1))]
    quantiles = np.quantile(centre.reshape(-1, 3), [0.02, 0.1, 0.5, 0.9, 0.98], axis=0)
    return np.concatenate([*parts, quantiles.ravel()])


def test_the_classes_look_different() -> None:
    """Ten hand-made colour measures tell the true class far better than chance, equal numbers of each class."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    labels = np.tile(np.arange(5), 30)
    features = [leaf_features(draw_photo(label, np.random.default_rng([1, k]))) for k, label in enumerate(labels)]
    forest = RandomForestClassifier(50, random_state=0, n_jobs=1)
    accuracy = cross_val_score(forest, np.array(features), labels, cv=3).mean()
    assert accuracy > 0.35, f"accuracy {accuracy:.3f}, chance is 0.2"
