"""Folds: every row once, classes even, groups whole, and the same file byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cassava_kit.competition import CASSAVA
from cassava_kit.data.folds import Folds, GroupCounts, labels_hash, read_folds, write_folds
from cassava_kit.data.stratify import make_folds, split_folds, split_holdout
from cassava_kit.errors import UserError


def table(n: int, seed: int = 0, n_classes: int = 5) -> pd.DataFrame:
    """`n` rows with uneven classes, each of at least ten rows."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(n_classes, 0.8))
    labels = np.concatenate([np.repeat(np.arange(n_classes), 10), rng.choice(n_classes, n - 10 * n_classes, p=shares)])
    ids = [f"{number}.jpg" for number in rng.permutation(10 * n)[:n]]
    return pd.DataFrame({"image_id": ids, "label": rng.permutation(labels)})


@pytest.mark.parametrize("n_splits", [2, 3, 5, 10])
@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_within_one_image_of_its_share_in_every_fold(n_splits, seed):
    folds = split_folds(table(60 + 131 * seed, seed), n_splits=n_splits, seed=seed)
    counts = pd.crosstab(folds.frame["label"], folds.frame["fold"]).to_numpy()
    assert counts.shape == (5, n_splits)
    assert np.abs(counts - counts.sum(axis=1, keepdims=True) / n_splits).max() < 1


def test_folds_cover_every_row_once_with_its_label():
    labels = table(237)
    folds = split_folds(labels, n_splits=5)
    held_out = pd.concat([folds.validation(k) for k in range(5)])
    assert sorted(held_out["image_id"]) == sorted(labels["image_id"])
    for k in range(5):
        train, validation = set(folds.training(k)["image_id"]), set(folds.validation(k)["image_id"])
        assert not train & validation
        assert len(train | validation) == 237
    merged = held_out.merge(labels, on="image_id", suffixes=("", "_given"))
    assert (merged["label"] == merged["label_given"]).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_of_rows_does_not_matter_and_the_seed_does(grouped):
    labels = table(200)
    groups = np.arange(200) // 2 if grouped else None
    shuffled = np.random.default_rng(1).permutation(200)
    first = split_folds(labels, seed=7, groups=groups)
    second = split_folds(labels.iloc[shuffled], seed=7, groups=None if groups is None else groups[shuffled])
    assert first.hash == second.hash
    assert first.frame.equals(second.frame)
    assert split_folds(labels, seed=8, groups=groups).hash != first.hash


@pytest.mark.parametrize("seed", range(10))
def test_groups_never_part(seed):
    labels = table(300, seed)
    rng = np.random.default_rng(seed)
    groups = np.where(rng.random(300) < 0.4, rng.integers(0, 40, 300), 1000 + np.arange(300))
    folds = split_folds(labels, n_splits=4, seed=seed, groups=groups)
    fold_of = dict(zip(folds.frame["image_id"], folds.frame["fold"], strict=True))
    sides = pd.Series([fold_of[name] for name in labels["image_id"]]).groupby(groups).nunique()
    assert (sides == 1).all()
    assert sorted(folds.frame["fold"].unique()) == [0, 1, 2, 3]


def test_pairs_of_duplicates_leave_the_classes_even():
    labels = table(500).sort_values("label", ignore_index=True)
    groups = np.concatenate([np.repeat(np.arange(25), 2), 1000 + np.arange(450)])
    shuffled = np.random.default_rng(0).permutation(500)
    folds = split_folds(labels.iloc[shuffled], n_splits=5, groups=groups[shuffled])
    counts = pd.crosstab(folds.frame["label"], folds.frame["fold"]).to_numpy()
    assert np.abs(counts - counts.sum(axis=1, keepdims=True) / 5).max() <= 2


SHARES = [(0.85, 0.15), (0.7, 0.3), (0.6, 0.2, 0.2)]


def parts_of(folds: Folds) -> dict[str, list[str]]:
    """Image ids by part, by what the numbers in the column mean."""
    names = {-1: "train", 0: "validation", -2: "test"}
    return {names[k]: rows["image_id"].tolist() for k, rows in folds.frame.groupby("fold")}


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("seed", range(5))
def test_a_holdouts_classes_are_within_one_image_of_their_shares(shares, seed):
    labels = table(60 + 131 * seed, seed)
    folds = split_holdout(labels, shares, seed=seed)
    counts = pd.crosstab(folds.frame["label"], folds.frame["fold"])[[-1, 0, -2][: len(shares)]].to_numpy()
    assert np.abs(counts - np.outer(counts.sum(axis=1), shares)).max() < 1
    merged = folds.frame.merge(labels, on="image_id", suffixes=("", "_given"))
    assert len(merged) == len(labels) and (merged["label"] == merged["label_given"]).all()


@pytest.mark.parametrize("shares", SHARES)
def test_a_holdout_is_one_fold_and_its_test_part_is_never_seen(shares, tmp_path):
    write_folds(tmp_path / "a.csv", split_holdout(table(200), shares))
    folds = read_folds(tmp_path / "a.csv")
    parts = parts_of(folds)
    assert folds.n_splits == 1
    assert folds.validation(0)["image_id"].tolist() == folds.scored["image_id"].tolist() == parts["validation"]
    assert folds.training(0)["image_id"].tolist() == parts["train"]
    assert folds.test["image_id"].tolist() == parts.get("test", [])
    assert len(parts["train"]) == round(200 * shares[0])
    with pytest.raises(UserError, match=r"fold must be in 0\.\.0, got 1"):
        folds.training(1)


def test_k_folds_score_every_row():
    folds = split_folds(table(100))
    assert folds.scored.equals(folds.frame) and folds.test.empty


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("seed", range(5))
def test_a_holdouts_groups_stay_in_one_part(shares, seed):
    labels = table(400, seed)
    rng = np.random.default_rng(seed)
    groups = np.where(rng.random(400) < 0.3, rng.integers(0, 40, 400), 1000 + np.arange(400))
    folds = split_holdout(labels, shares, seed=seed, groups=groups)
    fold = folds.frame.set_index("image_id")["fold"]
    assert fold[labels["image_id"]].groupby(groups).nunique().max() == 1
    assert split_holdout(labels, shares, seed=seed, groups=1000 - groups).hash == folds.hash


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.6), (1.2, -0.2), (0.25,) * 4, ()])
def test_shares_must_make_sense(shares):
    with pytest.raises(UserError, match="two or three positive numbers that sum to 1"):
        split_holdout(table(60), shares)


def test_a_class_too_small_for_the_parts_is_named():
    labels = pd.DataFrame({"image_id": list("abcdefg"), "label": [0, 0, 0, 0, 0, 7, 7]})
    with pytest.raises(UserError, match="needs 3 images of every class, class 7 has 2"):
        split_holdout(labels, (0.6, 0.2, 0.2))
    with pytest.raises(UserError, match="the validation part of 99-1 would have no image of class 0, which has 5"):
        split_holdout(labels, (0.99, 0.01))
    for make in (lambda rows: split_holdout(rows, (0.7, 0.3)), split_folds):
        with pytest.raises(UserError, match="the table is empty"):
            make(labels.iloc[:0])


def test_a_group_too_large_for_the_folds_is_refused_and_named():
    """96 of 100 rows are copies of one image: four rows are left for the four other folds, which need two each."""
    labels = pd.DataFrame({"image_id": [f"{n:03}.jpg" for n in range(100)], "label": np.arange(100) % 2})
    groups = np.where(np.arange(100) < 96, 0, np.arange(100))
    message = (
        r"would have no image of class .*: the group of near-duplicates around 000\.jpg has 48 .* 50 images \(96 in"
    )
    with pytest.raises(UserError, match=message):
        split_folds(labels, n_splits=5, groups=groups)
    with pytest.raises(UserError, match=r"part of 60-20-20 would have no image of class .* around 000\.jpg"):
        split_holdout(labels, (0.6, 0.2, 0.2), groups=np.where(np.arange(100) < 98, 0, np.arange(100)))
    one = np.zeros(100, int)
    with pytest.raises(UserError, match=r"fold \d would have no image of class 0.* has 50 of the class's 50"):
        split_folds(labels, n_splits=2, groups=one)


def test_a_class_that_is_one_group_is_refused():
    labels = pd.DataFrame({"image_id": [f"{n:03}.jpg" for n in range(100)], "label": (np.arange(100) >= 90) * 1})
    groups = np.where(np.arange(100) >= 90, 1000, np.arange(100))
    with pytest.raises(UserError, match=r"class 1: .* around 090\.jpg has 10 of the class's 10"):
        split_folds(labels, n_splits=5, groups=groups)


def test_groups_of_another_number_of_rows_are_refused():
    with pytest.raises(UserError, match="groups must name one group for each of 100 rows, got 3"):
        split_folds(table(100), groups=np.arange(3))


def test_the_header_says_competition_metric_and_groups(tmp_path):
    labels = table(100)
    groups = np.concatenate([[0, 0, 0, 1, 1], 10 + np.arange(95)])
    write_folds(tmp_path / "a.csv", split_folds(labels, groups=groups, task=CASSAVA.task))
    header = json.loads((tmp_path / "a.json").read_text())
    assert header["competition"] == "cassava-leaf-disease-classification"
    assert (header["metric"], header["classes"][3], header["id_column"]) == (
        "accuracy",
        "Cassava Mosaic Disease (CMD)",
        "image_id",
    )
    assert header["near_duplicates"] == {"groups": 2, "images": 5, "largest": 3}
    back = read_folds(tmp_path / "a.csv")
    assert (back.task, back.near_duplicates) == (CASSAVA.task, GroupCounts(2, 5, 3))
    write_folds(tmp_path / "b.csv", split_folds(labels))
    plain = read_folds(tmp_path / "b.csv")
    assert (plain.task, plain.near_duplicates) == (None, None)


@pytest.mark.parametrize("counts", [3, "many", {"groups": 1}, {"groups": 1, "images": 2, "largest": 2, "more": 0}])
def test_a_damaged_header_is_refused(tmp_path, counts):
    write_folds(tmp_path / "a.csv", split_folds(table(100)))
    header = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**header, "near_duplicates": counts}))
    with pytest.raises(UserError, match=r"a\.json must count groups, images and largest"):
        read_folds(tmp_path / "a.csv")


def test_names_of_any_characters_come_back(tmp_path):
    names = ["007", "NA", "1e5", "null", 'a"b', "a,b", "a\rb", "a\nb", "\u2028", " x ", "\ufeff", "#"]
    labels = pd.DataFrame({"image_id": names, "label": np.arange(12) % 2})
    write_folds(tmp_path / "a.csv", split_folds(labels, n_splits=2))
    assert set(read_folds(tmp_path / "a.csv").frame["image_id"]) == set(names)


def test_another_split_is_not_written_over(tmp_path):
    labels = table(100)
    path = tmp_path / "a.csv"
    write_folds(path, split_folds(labels))
    before = path.read_bytes()
    write_folds(path, split_folds(labels, task=CASSAVA.task))  # the same split, a fuller header
    assert read_folds(path).task == CASSAVA.task
    with pytest.raises(UserError, match=r"a\.csv is another split.*--replace"):
        write_folds(path, split_folds(labels, n_splits=2))
    assert path.read_bytes() == before and read_folds(path).n_splits == 5
    write_folds(path, split_folds(labels, n_splits=2), replace=True)
    assert read_folds(path).n_splits == 2


def test_files_are_the_same_byte_for_byte_and_come_back(tmp_path: Path):
    labels = table(200)
    write_folds(tmp_path / "a.csv", split_folds(labels, n_splits=5, seed=3))
    write_folds(tmp_path / "b.csv", split_folds(labels.sample(frac=1, random_state=0), n_splits=5, seed=3))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    back = read_folds(tmp_path / "a.csv")
    assert back.hash == split_folds(labels, n_splits=5, seed=3).hash
    assert (back.n_splits, back.seed, back.method) == (5, 3, "stratified-kfold")


def test_a_file_whose_rows_were_shuffled_is_the_same_split(tmp_path: Path):
    path = tmp_path / "a.csv"
    folds = split_folds(table(100))
    write_folds(path, folds)
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows)]) + "\n")
    assert read_folds(path).hash == folds.hash


def test_the_hash_knows_every_change():
    frame = split_folds(table(100)).frame
    hashes = {Folds(frame).hash}
    for column, value in (("image_id", "other.jpg"), ("label", 4 - frame["label"][3]), ("fold", 4 - frame["fold"][3])):
        changed = frame.copy()
        changed.loc[3, column] = value if column == "image_id" or value != frame[column][3] else value + 1
        hashes.add(Folds(changed).hash)
    assert len(hashes) == 4


def test_the_labels_hash_ignores_folds_and_order():
    labels = table(100)
    first, second = split_folds(labels, seed=1).frame, split_folds(labels, seed=2).frame
    assert labels_hash(first) == labels_hash(second) == labels_hash(labels.iloc[::-1])
    assert labels_hash(labels.assign(label=labels["label"].to_numpy()[::-1])) != labels_hash(labels)


@pytest.mark.parametrize("n_splits", [-1, 0, 1])
def test_fewer_than_two_folds_are_refused(n_splits):
    with pytest.raises(ValueError, match=f"n_splits must be a whole number of at least 2, got {n_splits}"):
        split_folds(table(100), n_splits=n_splits)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_does_not_take_is_refused(seed):
    for make in (lambda: split_folds(table(100), seed=seed), lambda: split_holdout(table(100), (0.7, 0.3), seed=seed)):
        with pytest.raises(UserError, match=rf"seed must be a whole number in 0\.\.4294967295, got {seed}"):
            make()


def test_a_class_smaller_than_the_folds_is_named():
    labels = pd.DataFrame({"image_id": list("abcdefghi"), "label": [0] * 6 + [2] * 3})
    with pytest.raises(ValueError, match="needs 5 images of every class, class 2 has 3"):
        split_folds(labels, n_splits=5)


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_out_of_range_is_refused(fold):
    folds = split_folds(table(100))
    with pytest.raises(ValueError, match=rf"fold must be in 0\.\.4, got {fold}"):
        folds.validation(fold)
    with pytest.raises(ValueError, match=r"fold must be in 0\.\.4"):
        folds.training(fold)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image_id,fold\na,1\n", "must have the columns image_id,label,fold"),
        ("image_id,label,fold\n", "has no rows"),
        ("image_id,label,fold\na,1,0\nb,1,x\n", "whole numbers in label and fold"),
        ("image_id,label,fold\na,1,0\nb,1.5,1\n", "whole numbers in label and fold"),
        ("image_id,label,fold\na,1,0\n,1,1\n", "no empty cell"),
        ("image_id,label,fold\na,1,0\na,1,1\n", "names a more than once"),
        ("image_id,label,fold\na,1,0\nb,1,2\n", r"must number its folds 0\.\.n-1"),
        ("image_id,label,fold\na,1,-3\nb,1,0\n", r"must number its folds 0\.\.n-1"),
        ("image_id,label,fold\na,1,-1\nb,1,-2\n", r"must number its folds 0\.\.n-1"),
        ("image_id,label,fold\na,1,0\nb,1,0\n", "one fold and no other row to train on"),
        ("image_id,label,fold\na,1,0\nb,1,-2\n", "one fold and no other row to train on"),
    ],
)
def test_a_bad_fold_file_is_refused(tmp_path: Path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_folds(tmp_path / "a.csv")


def test_a_fold_file_that_is_not_its_headers_is_refused(tmp_path: Path):
    path = tmp_path / "a.csv"
    folds = split_folds(table(100))
    write_folds(path, folds)
    swapped = folds.frame.assign(fold=folds.frame["fold"].to_numpy()[::-1])
    path.write_text(swapped.to_csv(index=False))
    with pytest.raises(ValueError, match="its hash differs"):
        read_folds(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no fold file"):
        read_folds(path)


# --- the public function -------------------------------------------------------------------------------------------


def named(labels: pd.DataFrame, names: dict[int, str]) -> pd.DataFrame:
    return labels.rename(columns={"image_id": "file", "label": "disease"}).assign(disease=labels["label"].map(names))


@pytest.mark.parametrize("grouped", [False, True])
def test_make_folds_is_the_kits_split_in_the_order_given(grouped):
    labels = table(200)
    groups = np.random.default_rng(0).integers(0, 90, 200) if grouped else None
    kit = split_folds(labels, n_splits=4, seed=3, groups=groups).frame.set_index("image_id")["fold"]
    made = make_folds(labels, n_splits=4, seed=3, groups=groups)
    assert list(made.columns) == ["image_id", "label", "fold"]
    assert made["image_id"].tolist() == labels["image_id"].tolist()
    assert made["fold"].tolist() == kit[labels["image_id"]].tolist()
    names = named(labels, dict(enumerate("ABCDE"))).assign(plant=groups if grouped else 0).set_index(np.arange(200) * 2)
    other = make_folds(names, 4, seed=3, groups="plant" if grouped else None, id_column="file", label_column="disease")
    assert list(other.columns) == ["file", "disease", "fold"] and other.index.equals(names.index)
    assert other["fold"].tolist() == made["fold"].tolist()


@pytest.mark.parametrize("kind", [list, np.array, pd.Series])
def test_make_folds_takes_labels_alone(kind):
    labels = kind(["a", "b", "a", "b", "a", "b"])
    made = make_folds(labels, n_splits=3)
    assert made["image_id"].tolist() == list(range(6))
    assert pd.crosstab(made["label"], made["fold"]).to_numpy().tolist() == [[1, 1, 1], [1, 1, 1]]


def test_make_folds_agrees_with_scikit_learn_on_what_a_good_split_is():
    """Reference: scikit-learn's StratifiedGroupKFold on the same rows is no more even, and keeps the same promises."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels = table(600, seed=2)
    groups = np.random.default_rng(1).integers(0, 250, 600)
    made = make_folds(labels, groups=groups)
    theirs = np.empty(600, int)
    split = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(labels, labels["label"], groups)
    for k, (_, held_out) in enumerate(split):
        theirs[held_out] = k

    def unevenness(fold) -> float:
        counts = pd.crosstab(labels["label"].to_numpy(), np.asarray(fold)).to_numpy()
        return float(np.abs(counts - counts.mean(axis=1, keepdims=True)).max())

    assert pd.Series(made["fold"].to_numpy()).groupby(groups).nunique().max() == 1
    assert unevenness(made["fold"]) <= unevenness(theirs)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"id_column": "file"}, "expected the columns file, label, got image_id, label; 'file' is missing"),
        ({}, {"groups": "plant"}, "expected the columns image_id, label, plant, got image_id, label"),
        ({}, {"groups": [1, 2, 3]}, "groups must name one group for each of 100 rows, got 3"),
        (
            {"label": [*[1] * 97, None, 2, None]},
            {},
            r"label must have a value .*, 2 of 100 have none \(first: row 97\)",
        ),
        ({"image_id": ["x"] * 100}, {}, "image_id names 'x' more than once"),
        ({}, {"n_splits": 1}, "n_splits must be a whole number of at least 2, got 1"),
        ({}, {"n_splits": 2.5}, "n_splits must be a whole number of at least 2, got 2.5"),
        ({}, {"seed": "7"}, "seed must be a whole number"),
        ({}, {"groups": 7}, "groups must be a column's name, or one group for each row, got int"),
        ({"label": ["rare", *["usual"] * 99]}, {}, "class rare has 1"),
    ],
)
def test_make_folds_says_what_was_expected(change, options, message):
    with pytest.raises(UserError, match=message):
        make_folds(table(100).assign(**change), **options)


@pytest.mark.parametrize("labels", ["train.csv", Path("train.csv"), {"image_id": [1, 2]}, 5, np.zeros((3, 2))])
def test_make_folds_takes_neither_names_nor_dictionaries_for_labels(labels):
    with pytest.raises(UserError, match=f"a DataFrame, or a sequence of labels, got {type(labels).__name__}"):
        make_folds(labels)


@pytest.mark.parametrize("module", ["stratify", "duplicates"])
def test_examples_are_true(module):
    import doctest
    from importlib import import_module

    tested = doctest.testmod(import_module(f"cassava_kit.data.{module}"))
    assert tested.attempted and not tested.failed
