"""A competition that takes probabilities: all votes count, and the file says so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from tiny_members import PRIOR
from tiny_runs import CPU, full_ensemble, submit

from cassava_kit.competition import CASSAVA
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, read_ensemble, write_ensemble
from cassava_kit.inference.options import RunOptions
from cassava_kit.inference.run import run_submission
from cassava_kit.inference.submission import check_answers, write_answers
from cassava_kit.inference.votes import Votes

COLUMNS = ("bacterial", "streak", "mottle", "mosaic", "healthy")
SCORED_BY_LOSS = replace(
    CASSAVA, metric="log_loss", probability_columns=COLUMNS, id_column="photo", ids_have_suffix=False
)


@pytest.mark.parametrize("early_stop", ["certified", "off"])
def test_the_probabilities_are_the_full_ensembles(images: Path, weights: Path, tmp_path: Path, early_stop: str) -> None:
    expected = full_ensemble(images, weights)
    expected /= expected.sum(axis=1, keepdims=True)
    (images / "005.jpg").write_bytes(b"no image")
    out, options = tmp_path / "out" / "s.csv", RunOptions(**CPU, early_stop=early_stop)
    report = run_submission(images, weights, out, options=options, competition=SCORED_BY_LOSS)
    assert report.early_stop["kind"] == "off" and report.early_stop["work_done"] == 1
    found = pd.read_csv(out, dtype={"photo": str})
    assert list(found.columns) == ["photo", *COLUMNS] and found["photo"].tolist() == [f"{i:03d}" for i in range(21)]
    p = found[list(COLUMNS)].to_numpy()
    assert np.abs(np.delete(p, 5, axis=0) - np.delete(expected, 5, axis=0)).max() < 1e-4
    assert np.abs(p[5] - PRIOR).max() < 1e-6
    summary = check_answers(out, images, SCORED_BY_LOSS)
    assert summary.class_counts == tuple(np.bincount(p.argmax(axis=1), minlength=5))
    assert "probabilities, most probable class" in str(summary)


TEMPERATURES = (0.5, 1.6, 0.8, 2.4, 1.1)


@pytest.fixture
def tempered_weights(weights: Path) -> Path:
    ensemble = read_ensemble(weights / ENSEMBLE_FILE).model_copy(update={"temperatures": TEMPERATURES})
    write_ensemble(weights / ENSEMBLE_FILE, ensemble)
    return weights


@pytest.mark.parametrize("early_stop", ["certified", "off"])
def test_temperatures_are_applied_to_the_mean_of_all_votes(
    images: Path, tempered_weights: Path, tmp_path: Path, early_stop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = full_ensemble(images, tempered_weights)
    plain /= plain.sum(axis=1, keepdims=True)
    expected = softmax(np.log(plain) / np.array(TEMPERATURES), axis=1)
    moved = int((expected.argmax(axis=1) != plain.argmax(axis=1)).sum())
    assert 0 < moved < 21
    labels, report = submit(images, tempered_weights, tmp_path / "s.csv", early_stop=early_stop)
    assert labels.tolist() == expected.argmax(axis=1).tolist()
    if early_stop == "off":
        assert report.temperatures == {"values": list(TEMPERATURES), "labels_moved": moved}
        assert f"temperatures of the classes moved {moved} of 21 labels" in capsys.readouterr().out
    run_submission(images, tempered_weights, tmp_path / "p.csv", options=RunOptions(**CPU), competition=SCORED_BY_LOSS)
    found = pd.read_csv(tmp_path / "p.csv")[list(COLUMNS)].to_numpy()
    assert found == pytest.approx(expected, abs=1e-4)


def test_without_a_member_the_prior_stands(images: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    run_submission(images, tmp_path / "none", tmp_path / "s.csv", competition=SCORED_BY_LOSS)
    found = pd.read_csv(tmp_path / "s.csv")[list(COLUMNS)].to_numpy()
    assert np.abs(found - CASSAVA.class_shares).max() < 1e-6


def test_probabilities_are_the_mean_of_the_votes_counted() -> None:
    votes = Votes(3, np.array([0.75, 0.25]), np.array([0.2, 0.8]))
    votes.add(0, np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]))
    votes.add(1, np.array([0]), np.array([[0.1, 0.9]]))
    assert votes.probabilities() == pytest.approx(np.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("000,.2,.2,.2,.2,.1", r"row 2 \(000\): the cells must be 5 probabilities that sum to 1"),
        ("000,1.2,-.2,0,0,0", "5 probabilities that sum to 1"),
        ("000,nan,.2,.2,.2,.2", "5 probabilities that sum to 1"),
        ("000,x,.2,.2,.2,.2", "5 probabilities that sum to 1"),
        ("000,3", "row 2 must have 6 cells, got 2"),
        ("000.jpg,1,0,0,0,0", "has no row for 21 of the 21 images"),
    ],
)
def test_rows_that_are_no_probabilities_are_refused(images: Path, tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(f"photo,{','.join(COLUMNS)}\n{row}\n")
    with pytest.raises(ValueError, match=message):
        check_answers(path, images, SCORED_BY_LOSS)
    path.write_text("photo,label\n000,1\n")
    with pytest.raises(ValueError, match="must begin with the columns photo,bacterial,streak"):
        check_answers(path, images, SCORED_BY_LOSS)


def test_a_row_of_eight_digits_is_read_back_as_whole(images: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in images.iterdir())
    p = np.random.default_rng(0).dirichlet(np.full(5, 0.05), len(names))
    write_answers(tmp_path / "s.csv", names, p, SCORED_BY_LOSS)
    assert check_answers(tmp_path / "s.csv", images, SCORED_BY_LOSS).n_images == 21
