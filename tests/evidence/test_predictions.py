import json

import numpy as np
import pandas as pd
import pytest

from cassava_kit.data.stratify import split_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.oof import read_evidence
from cassava_kit.evidence.predictions import (
    Header,
    Predictions,
    Source,
    make_predictions,
    probability_columns,
    read_predictions,
    write_oof,
    write_predictions,
)

IDS = np.array(["b.jpg", "a.jpg", "007"])
P = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])


def example(**changes):
    header = Header(name="m", kind="oof", fold_hash="f" * 64, sources=(Source(name="m-fold0", fold=0),))
    return make_predictions(IDS, P, header=header.model_copy(update=changes), fold=np.array([0, 1, 0]))


def test_a_prediction_file_comes_back_as_it_was_written(tmp_path):
    written = example()
    write_predictions(tmp_path / "oof.csv", written)
    read = read_predictions(tmp_path / "oof.csv")
    assert read.header == written.header
    assert list(read.ids) == list(IDS)
    assert np.abs(read.probabilities - P).max() < 1e-7
    assert read.frame["fold"].tolist() == [0, 1, 0]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["oof.csv", "oof.json"]


def test_a_foreign_file_needs_no_header_and_columns_are_ordered_by_number(tmp_path):
    columns = ["image_id", *[f"p{k}" for k in reversed(range(11))]]
    row = ["x.jpg", *np.linspace(0, 1, 11) / np.linspace(0, 1, 11).sum()]
    pd.DataFrame([row], columns=columns).to_csv(tmp_path / "foreign.csv", index=False)
    read = read_predictions(tmp_path / "foreign.csv")
    assert read.header is None
    assert probability_columns(read.frame) == [f"p{k}" for k in range(11)]
    assert read.probabilities.argmax() == 0, "p10 comes first in the file and is the largest-numbered class's"


def test_a_headerless_write_leaves_no_older_header_to_vouch_for_it(tmp_path):
    write_predictions(tmp_path / "oof.csv", example())
    write_predictions(tmp_path / "oof.csv", Predictions(example().frame))
    assert read_predictions(tmp_path / "oof.csv").header is None


BROKEN = {
    "no ids": ("p0,p1\n.5,.5\n", "must have the columns"),
    "one class": ("image_id,p0\na,1\n", "must have the columns"),
    "a gap in the classes": ("image_id,p0,p2\na,.5,.5\n", "must have the columns"),
    "no rows": ("image_id,p0,p1\n", "no rows"),
    "nothing": ("", "empty"),
    "an image twice": ("image_id,p0,p1\na,.5,.5\nb,.5,.5\na,.5,.5\n", "a more than once"),
    "an image without a name": ("image_id,p0,p1\na,.5,.5\n,.5,.5\n", "row 3 has no image_id"),
    "text for a number": ("image_id,p0,p1\na,.5,.5\nb,.5,half\n", "not a number"),
    "a hole": ("image_id,p0,p1\na,.5,.5\nb,.5,\n", r"row 3 \(b\)"),
    "an infinity": ("image_id,p0,p1\na,inf,.5\n", r"row 2 \(a\)"),
    "logits": ("image_id,p0,p1\na,2.3,-1.1\n", "softmax"),
    "negative": ("image_id,p0,p1\na,1.1,-0.1\n", "softmax"),
    "a sum over one": ("image_id,p0,p1\na,.6,.5\n", "sum to 1"),
    "a sum below one": ("image_id,p0,p1\na,.3,.3\n", "sum to 1"),
    "a fold that is no number": ("image_id,p0,p1,fold\na,.5,.5,one\n", "whole numbers in the column fold"),
    "half a fold": ("image_id,p0,p1,fold\na,.5,.5,1.5\n", "whole numbers in the column fold"),
    "a fold left out": ("image_id,p0,p1,fold\na,.5,.5,0\nb,.5,.5,\n", "whole numbers in the column fold"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_by_name(tmp_path, case):
    text, message = BROKEN[case]
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_predictions(tmp_path / "bad.csv")
    assert "bad.csv" in str(error.value)


def test_folds_written_as_decimals_are_whole_numbers(tmp_path):
    (tmp_path / "foreign.csv").write_text("image_id,p0,p1,fold\na,.5,.5,2.0\nb,.5,.5,0.0\n")
    assert read_predictions(tmp_path / "foreign.csv").frame["fold"].tolist() == [2, 0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_predictions(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "guess"}, "kind"), ({"surprise": 1}, "surprise"), ({"sources": [{"fold": 1}]}, "sources.0.name")],
)
def test_a_broken_header_is_refused_by_field(tmp_path, change, message):
    write_predictions(tmp_path / "oof.csv", example())
    header = json.loads((tmp_path / "oof.json").read_text()) | change
    (tmp_path / "oof.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "oof.csv")


def test_a_header_that_is_not_json_is_refused(tmp_path):
    write_predictions(tmp_path / "oof.csv", example())
    (tmp_path / "oof.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_predictions(tmp_path / "oof.csv")


def test_bad_probabilities_are_never_written(tmp_path):
    bad = Predictions(example().frame.assign(p0=7.0))
    with pytest.raises(ValueError, match="sum to 1"):
        write_predictions(tmp_path / "oof.csv", bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a\rb.jpg", "NA", "null", "nan", "a,b.jpg", 'q"x".jpg', "a\nb.jpg", " b"])
def test_any_file_name_comes_back(tmp_path, name):
    written = make_predictions(np.array(["x.jpg", name]), np.array([[0.25, 0.75], [1, 0]]), header=example().header)
    write_predictions(tmp_path / "oof.csv", written)
    read = read_predictions(tmp_path / "oof.csv")
    assert list(read.ids) == ["x.jpg", name] and read.probabilities.tolist() == [[0.25, 0.75], [1, 0]]


def test_another_programs_model_joins_by_write_oof(tmp_path):
    labels = pd.DataFrame({"image_id": [f"{i}.jpg" for i in range(12)], "label": [0, 1] * 6})
    split = split_folds(labels, n_splits=3, seed=0)
    p = np.random.default_rng(0).dirichlet(np.ones(2), 12)
    shuffled = split.frame.sample(frac=1, random_state=1)
    assert write_oof(tmp_path / "a" / "mine.csv", shuffled, p.tolist()) == tmp_path / "a" / "mine.csv"
    write_oof(tmp_path / "b.csv", shuffled.rename(columns={"image_id": "file"}), p, id_column="file")
    evidence = read_evidence([tmp_path / "a" / "mine.csv", tmp_path / "b.csv"], split)
    expected = pd.DataFrame(p, index=shuffled["image_id"]).loc[split.frame["image_id"]].to_numpy()
    assert np.allclose(evidence.pred_probs, expected[None], atol=1e-7)
    holdout = split.frame.assign(fold=np.where(np.arange(12) < 8, -1, 0))
    write_oof(tmp_path / "h.csv", holdout, p)
    assert len(read_predictions(tmp_path / "h.csv").ids) == 4, "rows of training alone are not out of fold"


@pytest.mark.parametrize(
    ("table", "probs", "message"),
    [
        ({"image_id": ["a"]}, [[0.5, 0.5]], "must have the columns image_id and fold, got image_id"),
        ({"image_id": ["a"], "fold": [0]}, [0.5, 0.5], r"expected probabilities \(1, K\)"),
        ({"image_id": ["a"], "fold": [0.5]}, [[0.5, 0.5]], "whole number in every row"),
        ({"image_id": ["a", "a"], "fold": [0, 1]}, [[0.5, 0.5]] * 2, "predicts a more than once"),
        ({"image_id": ["a"], "fold": [0]}, [[5.0, 1.0]], "sum to 1"),
    ],
)
def test_what_write_oof_cannot_write_is_refused(tmp_path, table, probs, message):
    with pytest.raises(UserError, match=message):
        write_oof(tmp_path / "x.csv", pd.DataFrame(table), probs)
    assert not (tmp_path / "x.csv").exists()
