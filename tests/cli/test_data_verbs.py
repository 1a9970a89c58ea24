"""The verb folds: the same files as the library makes, near-duplicates together, options that mean something."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cassava_kit.cli.app import run_app
from cassava_kit.cli.verbs import app
from cassava_kit.competition import CASSAVA, write_facts
from cassava_kit.data.duplicates import find_duplicates
from cassava_kit.data.folds import read_folds, write_folds
from cassava_kit.data.stratify import split_folds, split_holdout


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path / "cache"))


def run(*arguments):
    return run_app(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", ["85-15", "70-30", "60-20-20", "80-20"])
def test_parts_have_their_shares_of_every_class(tiny_dir, tiny_table, tmp_path, capsys, kind):
    out = tmp_path / "split.csv"
    assert run("folds", "--data", tiny_dir, "--holdout", kind, "--no-groups", "--out", out, "--seed", 3) == 0
    split = read_folds(out)
    shares = [int(text) / 100 for text in kind.split("-")]
    counts = split.frame.groupby("fold")["label"].value_counts().unstack(fill_value=0)
    for part, share in zip((-1, 0, -2), shares, strict=False):
        ideal = share * tiny_table.frame["label"].value_counts().sort_index()
        assert (np.abs(counts.loc[part].to_numpy() - ideal.to_numpy()) < 1).all()
    assert split.hash == split_holdout(tiny_table.frame, shares, seed=3).hash
    told = capsys.readouterr().out
    assert split.hash[:12] in told and "training alone" in told and ("test part" in told) == (len(shares) == 3)


def test_a_table_alone_will_do(tiny_dir, tmp_path):
    labels = tiny_dir / "train.csv"
    assert run("folds", "--labels", labels, "--holdout", "85-15", "--out", tmp_path / "a.csv") == 0
    arguments = ["--data", tiny_dir, "--holdout", "85-15", "--no-groups", "--out", tmp_path / "b.csv"]
    assert run("folds", *arguments) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize("kind", [["--holdout", "60-20-20"], ["--n-splits", "3"]])
def test_near_duplicates_stay_together_unless_told_otherwise(tiny_dir, tiny_table, tmp_path, capsys, kind):
    paths = [tiny_table.image_dir / name for name in tiny_table.frame["image_id"]]
    groups = pd.Series(find_duplicates(paths, progress=False), index=tiny_table.frame["image_id"])
    copies = groups[groups.duplicated(keep=False)]
    assert len(copies) >= 4
    separated = False
    for seed in range(4):
        arguments = ["--data", tiny_dir, *kind, "--seed", seed]
        assert run("folds", *arguments, "--out", tmp_path / f"{seed}.csv") == 0
        split = read_folds(tmp_path / f"{seed}.csv")
        assert split.frame.set_index("image_id")["fold"][copies.index].groupby(copies).nunique().max() == 1
        assert split.near_duplicates.images == len(copies)
        assert run("folds", *arguments, "--no-groups", "--out", tmp_path / f"{seed}-plain.csv") == 0
        plain = read_folds(tmp_path / f"{seed}-plain.csv")
        assert plain.near_duplicates is None
        fold = plain.frame.set_index("image_id")["fold"]
        separated |= fold[copies.index].groupby(copies).nunique().max() > 1
    assert separated  # without groups some copy falls on the other side
    assert "groups stay together" in capsys.readouterr().out


def test_fingerprints_are_made_once(tiny_dir, tmp_path, monkeypatch):
    from cassava_kit.data import fingerprints

    seen = []
    original = fingerprints._fingerprint
    monkeypatch.setattr(fingerprints, "_fingerprint", lambda path: seen.append(path.name) or original(path))
    for n_splits in (2, 3):
        assert run("folds", "--data", tiny_dir, "--n-splits", n_splits, "--out", tmp_path / f"{n_splits}.csv") == 0
    assert len(seen) == len(set(seen)) == 120


def test_the_files_name_says_the_split(tiny_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["--n-splits", 3, "--no-groups", "--seed", 7], ["--holdout", "60-20-20"]):
        assert run("folds", "--data", tiny_dir, *arguments) == 0
    assert run("folds", "--labels", tiny_dir / "train.csv", "--n-splits", 4) == 0
    assert sorted(path.name for path in (tmp_path / "folds").iterdir()) == [
        "holdout60-20-20-seed42-groups.csv",
        "holdout60-20-20-seed42-groups.json",
        "kfold3-seed7.csv",
        "kfold3-seed7.json",
        "kfold4-seed42.csv",
        "kfold4-seed42.json",
        "kfold5-seed42-groups.csv",
        "kfold5-seed42-groups.json",
    ]
    assert json.loads((tmp_path / "folds/kfold3-seed7.json").read_text())["competition"].startswith("cassava")


def test_another_split_is_not_written_over(tiny_dir, tiny_table, tmp_path, capsys):
    out = tmp_path / "folds.csv"
    arguments = ["folds", "--labels", tiny_dir / "train.csv", "--out", out]
    assert run(*arguments) == 0 and run(*arguments) == 0
    before = out.read_bytes()
    assert run(*arguments, "--n-splits", 2) == 2
    assert "is another split" in capsys.readouterr().err and out.read_bytes() == before
    assert run(*arguments, "--n-splits", 2, "--replace") == 0
    assert read_folds(out).hash == split_folds(tiny_table.frame, n_splits=2).hash


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--holdout", "85-16"], "sum to 100"),
        (["--holdout", "50-20-20-10"], "two or three"),
        (["--holdout", "half"], "--holdout must be two or three whole percentages"),
        (["--holdout", "100-0"], "whole percentages"),
        (["--holdout", "85-15", "--n-splits", "3"], "--holdout 85-15 is one split"),
        (["--n-splits", "1"], "greater than or equal to 2"),
        (["--holdout", "85-15", "--labels", "train.csv"], "either --data DIR or --labels"),
        (["--n-splits", "60"], "needs 60 images of every class"),
    ],
)
def test_errors_are_one_line(tiny_dir, tmp_path, capsys, arguments, message):
    assert run("folds", "--data", tiny_dir, "--no-groups", "--out", tmp_path / "x.csv", *arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0]
    assert not (tmp_path / "x.csv").exists()


def test_a_table_is_not_written_over_by_its_header(tiny_dir, tmp_path, capsys):
    assert run("folds", "--data", tiny_dir, "--out", tmp_path / "a.json") == 2
    assert "expected a name that ends in .csv" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_one_line(tiny_dir, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert run("folds", "--data", tiny_dir, "--no-groups", "--out", tmp_path / "taken" / "f.csv") == 2
    error = capsys.readouterr().err
    assert f"nothing can be written in {tmp_path / 'taken'} (it is a file)" in error


def test_a_part_without_a_class_is_refused(tmp_path, capsys):
    rows = "".join(f"{n}.jpg,{n % 5}\n" for n in range(15))
    (tmp_path / "train.csv").write_text("image_id,label\n" + rows)
    arguments = ["--labels", tmp_path / "train.csv", "--holdout", "99-1", "--out", tmp_path / "a.csv"]
    assert run("folds", *arguments) == 2
    assert (
        "the validation part of 99-1 would have no image of Cassava Bacterial Blight (CBB)" in capsys.readouterr().err
    )
    assert not (tmp_path / "a.csv").exists()


def test_groups_need_the_images(tiny_dir, tmp_path, capsys):
    arguments = ["--labels", tiny_dir / "train.csv", "--holdout", "85-15", "--groups", "--out", tmp_path / "x.csv"]
    assert run("folds", *arguments) == 2
    assert "give --data DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--n-splits", "500"],
            "a split into 500 parts needs 500 images of every class, Cassava Bacterial Blight (CBB) has",
        ),
        (["--seed", "-1"], "seed must be a whole number"),
        (["--n-splits", "3"], "taken.csv is another split"),
        (["--seed", "7"], "taken.csv is another split"),
        (["--holdout", "85-15"], "taken.csv is another split"),
        (["--n-splits", "500", "--replace"], "a split into 500 parts"),
        (["--n-splits", "500", "--out", "new.csv"], "a split into 500 parts"),
    ],
)
def test_what_is_known_beforehand_is_said_before_near_duplicates_are_looked_for(
    tiny_dir, tiny_table, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cassava_kit.data.duplicates.table_groups", lambda table: pytest.fail("images were compared"))
    groups = np.arange(len(tiny_table.frame))
    write_folds(tmp_path / "taken.csv", split_folds(tiny_table.frame, n_splits=2, groups=groups))
    before = (tmp_path / "taken.csv").read_bytes()
    arguments = arguments if "--holdout" in arguments else ["--n-splits", 2, *arguments]
    assert run("folds", "--data", tiny_dir, "--out", "taken.csv", *arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0]
    assert (tmp_path / "taken.csv").read_bytes() == before and not (tmp_path / "new.csv").exists()


def test_a_table_of_labels_is_never_written_over(tiny_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = (tiny_dir / "train.csv").read_bytes()
    (tmp_path / "train.csv").write_bytes(before)
    assert run("folds", "--labels", "train.csv", "--out", tmp_path / "train.csv", "--replace") == 2
    assert "would be written over" in capsys.readouterr().err and (tmp_path / "train.csv").read_bytes() == before


@pytest.mark.parametrize("named", [True, False])
def test_counts_are_shown_a_class_a_line(tiny_dir, tmp_path, monkeypatch, capsys, named):
    labels = tiny_dir / "train.csv"
    if named:
        monkeypatch.chdir(tmp_path)
        table = pd.read_csv(labels)
        table.assign(label=[CASSAVA.classes[k] for k in table["label"]]).to_csv("named.csv", index=False)
        facts = replace(CASSAVA, label_values=CASSAVA.classes, train_csv="named.csv")
        write_facts(tmp_path / "competition.json", facts)
        labels = tmp_path / "named.csv"
    assert run("folds", "--labels", labels, "--n-splits", 2, "--out", tmp_path / "f.csv") == 0
    lines = capsys.readouterr().out.splitlines()
    counts = read_folds(tmp_path / "f.csv").frame.groupby("label")["fold"].value_counts().unstack()
    for k, name in enumerate(CASSAVA.classes):
        (line,) = [line for line in lines if name in line]
        start = name if named else f"{k} {name}"
        assert line.startswith(start) and line.removeprefix(start).split() == [str(n) for n in counts.loc[k]]
