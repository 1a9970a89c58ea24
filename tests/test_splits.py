"""Holdout splits: shares kept class by class, groups kept together, the same file every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cassava_kit.splits import class_quotas, make_split, read_split, stratified_parts, write_split

SHARES = [(0.85, 0.15), (0.7, 0.3), (0.6, 0.2, 0.2)]


def table(n: int, seed: int = 0, n_classes: int = 5) -> pd.DataFrame:
    """`n` rows with uneven classes, each of at least three rows."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(n_classes, 0.8))
    labels = np.concatenate([np.repeat(np.arange(n_classes), 3), rng.choice(n_classes, n - 3 * n_classes, p=shares)])
    ids = [f"{number}.jpg" for number in rng.permutation(10 * n)[:n]]
    return pd.DataFrame({"image_id": ids, "label": rng.permutation(labels)})


def worst_deviation(frame: pd.DataFrame, shares: tuple[float, ...]) -> float:
    counts = pd.crosstab(frame["label"], frame["part"])[["train", "val", "test"][: len(shares)]].to_numpy()
    return float(np.abs(counts - np.outer(counts.sum(axis=1), shares)).max())


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("seed", range(20))
def test_each_class_is_within_one_image_of_its_share(shares, seed):
    labels = table(30 + 37 * seed, seed)
    split = make_split(labels, shares, seed=seed)
    assert worst_deviation(split.frame, shares) < 1
    assert sorted(split.frame["image_id"]) == sorted(labels["image_id"])
    merged = split.frame.merge(labels, on="image_id", suffixes=("", "_given"))
    assert (merged["label"] == merged["label_given"]).all()


@pytest.mark.parametrize("shares", [*SHARES, (0.5, 0.25, 0.25), (0.2,) * 5])
def test_quotas_add_up_and_totals_stay_near(shares):
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = rng.integers(3, 400, rng.integers(2, 12))
        quotas = class_quotas(counts, shares)
        assert (quotas.sum(axis=1) == counts).all()
        assert np.abs(quotas - np.outer(counts, shares)).max() < 1
        assert np.abs(quotas.sum(axis=0) - counts.sum() * np.array(shares)).max() < 2


def test_the_competitions_shares():
    counts = {0: 1087, 1: 2189, 2: 2386, 3: 13158, 4: 2577}
    labels = pd.DataFrame(
        {
            "image_id": [f"{k}-{n}" for k, count in counts.items() for n in range(count)],
            "label": np.repeat(*map(list, zip(*counts.items(), strict=True))),
        }
    )
    sizes = make_split(labels, (0.6, 0.2, 0.2)).frame["part"].value_counts()
    assert abs(sizes["train"] - 0.6 * 21_397) < 2
    assert abs(sizes["test"] - 0.2 * 21_397) < 2


def test_the_same_rows_make_the_same_split_in_any_order():
    labels = table(200)
    groups = np.arange(200) // 2
    shuffled = np.random.default_rng(1).permutation(200)
    for given in (None, groups):
        first = make_split(labels, (0.7, 0.3), seed=5, groups=given)
        renamed = None if given is None else 1000 - given[shuffled]
        second = make_split(labels.iloc[shuffled], (0.7, 0.3), seed=5, groups=renamed)
        assert first.frame.equals(second.frame)
        assert first.hash == second.hash
    assert make_split(labels, (0.7, 0.3), seed=6).hash != make_split(labels, (0.7, 0.3), seed=5).hash


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("seed", range(10))
def test_groups_stay_on_one_side(shares, seed):
    labels = table(400, seed)
    rng = np.random.default_rng(seed)
    groups = np.where(rng.random(400) < 0.3, rng.integers(0, 40, 400), 1000 + np.arange(400))
    frame = make_split(labels, shares, seed=seed, groups=groups).frame
    part = dict(zip(frame["image_id"], frame["part"], strict=True))
    sides = pd.Series([part[name] for name in labels["image_id"]]).groupby(groups).nunique()
    assert (sides == 1).all()
    assert len(frame) == 400


@pytest.mark.parametrize("shares", SHARES)
def test_small_groups_cost_no_balance(shares):
    labels = table(600).sort_values("label", ignore_index=True)
    groups = np.concatenate([np.repeat(np.arange(40), 2), 1000 + np.arange(520)])
    shuffled = np.random.default_rng(0).permutation(600)
    frame = make_split(labels.iloc[shuffled], shares, groups=groups[shuffled]).frame
    assert worst_deviation(frame, shares) <= 2


def test_groups_reach_every_part():
    labels = table(300)
    groups = np.arange(300) // 3
    counts = make_split(labels, (0.6, 0.2, 0.2), groups=groups).frame["part"].value_counts()
    assert abs(counts["train"] - 180) <= 6
    assert abs(counts["test"] - 60) <= 6


def test_parts_of_any_number_are_balanced_and_quick():
    labels = np.repeat(np.arange(5), (1087, 2189, 2386, 13158, 2577))
    groups = np.arange(21_397)
    groups[::50] = groups[1::50]  # 428 pairs
    part = stratified_parts(labels, (0.2,) * 5, seed=0, groups=groups)
    assert (part[::50] == part[1::50]).all()
    counts = pd.crosstab(labels, part).to_numpy()
    assert np.abs(counts - counts.sum(axis=1, keepdims=True) / 5).max() <= 1


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.6), (1.2, -0.2), (0.25,) * 4, ()])
def test_shares_must_make_sense(shares):
    with pytest.raises(ValueError, match="two or three positive numbers that sum to 1"):
        make_split(table(50), shares)


def test_a_class_too_small_is_named():
    labels = pd.DataFrame({"image_id": list("abcdefg"), "label": [0, 0, 0, 0, 0, 7, 7]})
    with pytest.raises(ValueError, match="needs 3 images of every class; class 7 has 2"):
        make_split(labels, (0.6, 0.2, 0.2))
    with pytest.raises(ValueError, match="the table is empty"):
        make_split(labels.iloc[:0], (0.7, 0.3))


def test_the_file_comes_back_and_is_the_same_bytes(tmp_path: Path):
    split = make_split(table(100), (0.6, 0.2, 0.2), seed=3)
    write_split(tmp_path / "a.csv", split)
    write_split(tmp_path / "b.csv", make_split(table(100), (0.6, 0.2, 0.2), seed=3))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    back = read_split(tmp_path / "a.csv")
    assert back.hash == split.hash
    assert (back.shares, back.seed, back.method) == ((0.6, 0.2, 0.2), 3, "stratified-holdout-60-20-20")
    assert [len(back.part(name)) for name in ("train", "val", "test")] == [60, 20, 20]
    with pytest.raises(ValueError, match="part must be one of test, train, val, got 'valid'"):
        back.part("valid")


def test_ids_that_look_like_numbers_or_gaps_stay_text(tmp_path: Path):
    labels = pd.DataFrame({"image_id": ["007", "NA", "1e5", "null", "x", "y"], "label": [0, 0, 0, 1, 1, 1]})
    write_split(tmp_path / "a.csv", make_split(labels, (0.5, 0.5)))
    assert set(read_split(tmp_path / "a.csv").frame["image_id"]) == set(labels["image_id"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image_id,label\na,1\n", "must have the columns image_id,label,part"),
        ("image_id,label,part\n", "must have rows"),
        ("image_id,label,part\na,x,train\nb,1,val\n", "whole number"),
        ("image_id,label,part\na,1,train\na,1,val\n", "names a more than once"),
        ("image_id,label,part\na,1,train\nb,1,valid\n", "must have the parts train,val"),
        ("image_id,label,part\na,1,train\nb,1,train\n", "must have the parts train,val"),
    ],
)
def test_a_bad_split_file_is_refused(tmp_path: Path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_split(tmp_path / "a.csv")


def test_a_split_that_is_not_its_headers_is_refused(tmp_path: Path):
    path = tmp_path / "a.csv"
    write_split(path, make_split(table(100), (0.7, 0.3)))
    path.write_text(
        path.read_text().replace(",val", ",swap", 1).replace(",train", ",val", 1).replace(",swap", ",train")
    )
    with pytest.raises(ValueError, match="its hash differs"):
        read_split(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no split file"):
        read_split(path)


def test_a_split_serves_as_folds():
    split = make_split(table(100), (0.6, 0.2, 0.2))
    folds = split.as_folds()
    assert set(folds.validation(0)["image_id"]) == set(split.part("val")["image_id"])
    assert set(folds.training(0)["image_id"]) == set(split.part("train")["image_id"])
    assert folds.method == "stratified-holdout-60-20-20"
