"""The baseline: out of fold by the contract, the same each time, better than the majority where colour tells."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cassava_kit.data.images import decode_small, resize
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import read_competition
from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import accuracy, majority
from cassava_kit.evidence.oof import read_evidence
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.files import read_json, write_json
from cassava_kit.training.baseline import LogReg, read_pixels, train_baseline
from cassava_kit.training.rows import TrainData


@pytest.fixture(scope="module")
def trained(tiny_table, tiny_folds, tmp_path_factory):
    """A run of all folds on the tiny competition, and its score."""
    out = tmp_path_factory.mktemp("runs")
    return out, train_baseline(TrainData(tiny_table, tiny_folds), out)


@pytest.fixture
def colours(tmp_path):
    """A competition whose classes 0 and 4 are red and green pictures, twelve of each."""
    images = tmp_path / "data" / "train_images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names, labels = [], []
    for n in range(24):
        image = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
        image[..., 0 if n % 2 else 1] += 100
        cv2.imwrite(str(images / f"{n:02d}.jpg"), image[..., ::-1])
        names.append(f"{n:02d}.jpg")
        labels.append(0 if n % 2 else 4)
    pd.DataFrame({"image_id": names, "label": labels}).to_csv(tmp_path / "data" / "train.csv", index=False)
    table = read_competition(tmp_path / "data")
    return TrainData(table, split_folds(table.frame, n_splits=3, seed=0))


def test_it_is_a_member_like_any_other(trained, tiny_folds):
    out, score = trained
    evidence = read_evidence([out / "logreg" / "oof.csv"], tiny_folds)
    assert evidence.names == ("logreg",)
    assert accuracy(evidence.labels, evidence.pred_probs[0]) == score and score.n == 120
    header = read_predictions(out / "logreg" / "oof.csv").header
    assert [(source.name, source.fold) for source in header.sources] == [("logreg-fold0", 0), ("logreg-fold1", 1)]


def test_fold_folders_have_what_a_run_has(trained, tiny_folds):
    out, _ = trained
    for k in range(2):
        folder = out / "logreg" / f"fold{k}"
        part = read_predictions(folder / "oof.csv")
        rows = tiny_folds.validation(k)
        done, config = (json.loads((folder / name).read_text()) for name in ("run.json", "config.json"))
        score = accuracy(rows["label"].to_numpy(), part.probabilities)
        assert part.ids.tolist() == rows["image_id"].tolist()
        assert done["oof_accuracy"] == pytest.approx(score.accuracy) and done["oof_rows"] == len(rows)
        assert done["labels"] == "given" and done["seconds"] > 0
        assert config["recipe"] == "logreg" and config["image_size"] == 32


def test_probabilities_are_scikit_learns(trained, tiny_table, tiny_folds):
    out, _ = trained
    frame = tiny_folds.frame
    paths = [tiny_table.image_dir / name for name in frame["image_id"]]
    x = np.stack([resize(decode_small(path.read_bytes(), 32, most=2), (32, 32)).ravel() for path in paths]).astype(
        np.float32
    )
    y, held = frame["label"].to_numpy(), (frame["fold"] == 1).to_numpy()
    scaler = StandardScaler().fit(x[~held])
    model = LogisticRegression(C=LogReg().c, max_iter=300).fit(scaler.transform(x[~held]), y[~held])
    part = read_predictions(out / "logreg" / "fold1" / "oof.csv")
    assert np.abs(part.probabilities - model.predict_proba(scaler.transform(x[held]))).max() < 1e-5


def test_the_same_bytes_each_time(trained, tiny_table, tiny_folds, tmp_path):
    out, score = trained
    assert train_baseline(TrainData(tiny_table, tiny_folds), tmp_path, progress=False) == score
    for name in ("oof.csv", "oof.json", "fold0/oof.csv", "fold1/config.json"):
        assert (tmp_path / "logreg" / name).read_bytes() == (out / "logreg" / name).read_bytes(), name


def test_colour_is_learnt_out_of_fold(colours, tmp_path):
    score = train_baseline(colours, tmp_path / "runs", progress=False)
    assert score.accuracy > 0.9 > majority(colours.folds.frame["label"].to_numpy()).accuracy
    whole = read_predictions(tmp_path / "runs" / "logreg" / "oof.csv")
    assert whole.probabilities.shape == (24, 5)
    assert (whole.probabilities[:, 1:4] == 0).all()  # classes that no row has


def test_unreadable_images_get_the_prior_and_teach_nothing(colours, tmp_path):
    images = colours.table.image_dir
    held = colours.folds.validation(0)["image_id"]
    (images / held[0]).write_bytes(b"not an image")
    seen = colours.folds.training(0)
    (images / seen["image_id"][0]).write_bytes(b"")
    pixels, readable = read_pixels(colours.paths(colours.folds.frame), 32, progress=False)
    assert readable.sum() == 22 and (pixels[~readable] == 0).all()
    train_baseline(colours, tmp_path / "runs", progress=False)
    part = read_predictions(tmp_path / "runs" / "logreg" / "fold0" / "oof.csv").frame.set_index("image_id")
    prior = np.bincount(seen["label"], minlength=5) / len(seen)
    assert part.loc[held[0], [f"p{k}" for k in range(5)]].to_numpy(float) == pytest.approx(prior)
    assert part.loc[held[1], "p0"] not in (prior[0], pytest.approx(prior[0]))
    frame = colours.folds.frame
    taught = (frame["fold"] != 0).to_numpy() & readable  # what scikit-learn makes of the readable rows alone
    scaler = StandardScaler().fit(pixels[taught].astype(np.float32))
    model = LogisticRegression(C=LogReg().c, max_iter=300)
    model.fit(scaler.transform(pixels[taught].astype(np.float32)), frame["label"][taught])
    row = np.flatnonzero(frame["image_id"] == held[1])
    expected = model.predict_proba(scaler.transform(pixels[row].astype(np.float32)))[0]
    assert part.loc[held[1], ["p0", "p4"]].to_numpy(float) == pytest.approx(expected, abs=1e-5)


def test_some_folds_alone(colours, tmp_path):
    score = train_baseline(colours, tmp_path, folds=[2], progress=False)
    assert score.n == 8
    assert (tmp_path / "logreg" / "fold2" / "run.json").is_file()
    assert not (tmp_path / "logreg" / "oof.csv").exists() and not (tmp_path / "logreg" / "fold0").exists()


def test_a_run_cut_short_is_not_whole(colours, tmp_path, monkeypatch):
    train_baseline(colours, tmp_path, folds=[0], progress=False)
    monkeypatch.setattr(
        "cassava_kit.training.baseline.write_predictions", lambda *_: (_ for _ in ()).throw(OSError("disk"))
    )
    with pytest.raises(OSError, match="disk"):
        train_baseline(colours, tmp_path, folds=[0], progress=False)
    assert not (tmp_path / "logreg" / "fold0" / "run.json").exists()


def test_errors_come_before_the_work(colours, tmp_path):
    with pytest.raises(ValueError, match=r"fold must be in 0\.\.2, got 3"):
        train_baseline(colours, tmp_path, folds=[3], progress=False)
    other = split_folds(colours.table.frame.assign(label=[0, 4] * 12)[::-1], n_splits=3)
    wrong = TrainData(colours.table, split_folds(other.frame.iloc[:20], n_splits=3))
    with pytest.raises(ValueError, match="4 images of the table are not in it"):
        train_baseline(wrong, tmp_path, progress=False)
    for path in colours.table.image_dir.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no readable training image"):
        train_baseline(colours, tmp_path, progress=False)
    assert not (tmp_path / "logreg").exists()


def test_a_baseline_of_another_version_of_the_code_is_not_written_over(colours, tmp_path):
    train_baseline(colours, tmp_path, progress=False)
    done = tmp_path / "logreg" / "fold1" / "run.json"
    known = read_json(done)
    write_json(done, known | {"fingerprint": known["fingerprint"] | {"code": "0" * 64}})
    with pytest.raises(UserError, match="fold1 was trained by another version of the code; give another --out, or"):
        train_baseline(colours, tmp_path, progress=False)
    train_baseline(colours, tmp_path, progress=False, replace=True)
    assert read_json(done)["fingerprint"] == known["fingerprint"]


def test_a_finished_run_of_another_split_is_replaced_only_where_asked(colours, tmp_path):
    train_baseline(colours, tmp_path, progress=False)
    before = (tmp_path / "logreg" / "oof.csv").read_bytes()
    other = TrainData(colours.table, split_folds(colours.table.frame, n_splits=3, seed=1))
    with pytest.raises(UserError, match="fold1 holds a finished run with other folds; give another --out, or replace"):
        train_baseline(other, tmp_path, folds=[1], progress=False)
    assert (tmp_path / "logreg" / "oof.csv").read_bytes() == before
    train_baseline(other, tmp_path, folds=[1], progress=False, replace=True)
    part = read_predictions(tmp_path / "logreg" / "fold1" / "oof.csv")
    assert part.header.fold_hash == other.folds.hash
    assert not (tmp_path / "logreg" / "oof.csv").exists(), "joined from a fold that is no longer"
    train_baseline(colours, tmp_path, folds=[0], progress=False)  # the same again
