"""The verbs on splits: the same files as the library makes, near-duplicates together, options that mean something."""

import numpy as np
import pandas as pd
import pytest

from cassava_kit.__main__ import app
from cassava_kit.cli import run_app
from cassava_kit.data.duplicates import find_duplicates
from cassava_kit.folds import make_folds, read_folds
from cassava_kit.splits import make_split, read_split


def run(*arguments):
    return run_app(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", ["85-15", "70-30", "60-20-20", "80-20"])
def test_parts_have_their_shares_of_every_class(tiny_dir, tiny_table, tmp_path, capsys, kind):
    out = tmp_path / "split.csv"
    assert run("splits", "--data", tiny_dir, "--kind", kind, "--out", out, "--seed", 3) == 0
    split = read_split(out)
    shares = [int(text) / 100 for text in kind.split("-")]
    counts = split.frame.groupby("part")["label"].value_counts().unstack(fill_value=0)
    for part, share in zip(("train", "val", "test"), shares, strict=False):
        ideal = share * tiny_table.frame["label"].value_counts().sort_index()
        assert (np.abs(counts.loc[part].to_numpy() - ideal.to_numpy()) < 1).all()
    assert split.hash == make_split(tiny_table.frame, shares, seed=3).hash
    told = capsys.readouterr().out
    assert split.hash[:12] in told and told.index("train") < told.index("val")


def test_kfold_is_what_the_verb_folds_makes(tiny_dir, tiny_table, tmp_path):
    assert run("splits", "--data", tiny_dir, "--kind", "kfold", "--n-splits", 3, "--out", tmp_path / "a.csv") == 0
    assert run("folds", "--data", tiny_dir, "--n-splits", 3, "--out", tmp_path / "b.csv") == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert read_folds(tmp_path / "a.csv").hash == make_folds(tiny_table.frame, n_splits=3).hash


def test_a_table_alone_will_do(tiny_dir, tmp_path):
    assert run("splits", "--labels", tiny_dir / "train.csv", "--kind", "85-15", "--out", tmp_path / "a.csv") == 0
    assert run("splits", "--data", tiny_dir, "--kind", "85-15", "--out", tmp_path / "b.csv") == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_near_duplicates_stay_together(tiny_dir, tiny_table, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path / "cache"))
    paths = [tiny_table.image_dir / name for name in tiny_table.frame["image_id"]]
    groups = pd.Series(find_duplicates(paths, progress=False), index=tiny_table.frame["image_id"])
    copies = groups[groups.duplicated(keep=False)]
    assert len(copies) >= 4
    parted = False
    for seed in range(4):
        out = tmp_path / "split.csv"
        assert run("splits", "--data", tiny_dir, "--kind", "60-20-20", "--groups", "--out", out, "--seed", seed) == 0
        part = read_split(out).frame.set_index("image_id")["part"]
        assert part[copies.index].groupby(copies).nunique().max() == 1
        plain = make_split(tiny_table.frame, (0.6, 0.2, 0.2), seed=seed).frame.set_index("image_id")["part"]
        parted |= plain[copies.index].groupby(copies).nunique().max() > 1
    assert parted  # without --groups some copy falls on the other side
    assert "groups stay together" in capsys.readouterr().out


def test_as_folds_holds_val_out_as_fold_0(tiny_dir, tmp_path):
    split, folds = tmp_path / "split.csv", tmp_path / "folds.csv"
    assert run("splits", "--data", tiny_dir, "--kind", "60-20-20", "--out", split, "--as-folds", folds) == 0
    parts, made = read_split(split), read_folds(folds)
    assert made.validation(0)["image_id"].tolist() == parts.part("val")["image_id"].tolist()
    assert made.training(0)["image_id"].tolist() == parts.part("train")["image_id"].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "85-16"], "sum to 100"),
        (["--kind", "50-20-20-10"], "two or three"),
        (["--kind", "half"], "--kind must be kfold"),
        (["--kind", "100-0"], "positive"),
        (["--kind", "85-15", "--n-splits", "3"], "goes with --kind kfold"),
        (["--kind", "kfold", "--as-folds", "x.csv"], "kfold writes a fold file already"),
        (["--kind", "kfold", "--n-splits", "1"], "at least 2"),
        (["--kind", "85-15", "--labels", "train.csv"], "either --data DIR or --labels"),
    ],
)
def test_errors_are_one_line(tiny_dir, tmp_path, capsys, arguments, message):
    assert run("splits", "--data", tiny_dir, "--out", tmp_path / "x.csv", *arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0]
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize(
    ("verb", "out", "more", "message"),
    [
        (["splits", "--kind", "85-15"], "a.csv", {"--as-folds": "a.csv"}, "--as-folds would be written over --out"),
        (["splits", "--kind", "85-15"], "a.csv", {"--as-folds": "a.txt"}, "--as-folds would be written over --out"),
        (["splits", "--kind", "85-15"], "a.json", {}, "expected a name that ends in .csv"),
        (["folds"], "a.json", {}, "expected a name that ends in .csv"),
    ],
)
def test_no_file_is_written_over_another(tiny_dir, tmp_path, capsys, verb, out, more, message):
    others = [part for option, name in more.items() for part in (option, tmp_path / name)]
    assert run(*verb, "--data", tiny_dir, "--out", tmp_path / out, *others) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_one_line(tiny_dir, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert run("folds", "--data", tiny_dir, "--out", tmp_path / "taken" / "f.csv") == 2
    assert "File exists" in capsys.readouterr().err


def test_a_part_without_rows_is_refused(tmp_path, capsys):
    rows = "".join(f"{n}.jpg,{n % 5}\n" for n in range(15))
    (tmp_path / "train.csv").write_text("image_id,label\n" + rows)
    assert run("splits", "--labels", tmp_path / "train.csv", "--kind", "99-1", "--out", tmp_path / "a.csv") == 2
    assert "15 images are too few for parts of 99%, 1%" in capsys.readouterr().err


def test_groups_need_the_images(tiny_dir, tmp_path, capsys):
    arguments = ["--labels", tiny_dir / "train.csv", "--kind", "85-15", "--groups", "--out", tmp_path / "x.csv"]
    assert run("splits", *arguments) == 2
    assert "give --data DIR" in capsys.readouterr().err
