"""Verbs on the competition's data: sample, sheet, tfrecords, folds, splits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cassava_kit.verbs.options import Data

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def sample(
    out: Annotated[Path | None, typer.Option(help="Folder to make it in; default: the cache folder.")] = None,
) -> None:
    """Make the embedded sample competition: drawn leaves in Kaggle's exact layout."""
    from cassava_kit.sample import ensure_sample

    print(ensure_sample(out))


def sheet(
    data: Data,
    out: Annotated[Path, typer.Option(help="Picture to write, .png or .jpg.")] = Path("sheet.png"),
    columns: Annotated[int, typer.Option(min=1, help="Pictures of each class.")] = 8,
) -> None:
    """Put some pictures of every class on one contact sheet, a row a class."""
    from cassava_kit.report.sheet import contact_sheet

    print(contact_sheet(data, out, columns=columns))


def tfrecords(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of .tfrec files, or one of them.")],
    out: Annotated[Path, typer.Option(help="Competition folder to make: train.csv and train_images/.")],
) -> None:
    """Make a competition folder of TFRecords: the same table, and the images' bytes as they are."""
    from cassava_kit.data.tfrecords import unpack_tfrecords

    print(f"{len(unpack_tfrecords(source, out))} images: {out}")


DataOrNone = Annotated[
    Path | None, typer.Option("--data", help="Competition folder; its images are checked against the table.")
]
Labels = Annotated[Path | None, typer.Option("--labels", help="A table image_id,label alone; no image is opened.")]
Groups = Annotated[bool, typer.Option("--groups", help="Keep near-duplicate images together (needs --data).")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the shuffle.")]


def folds(
    data: DataOrNone = None,
    labels: Labels = None,
    n_splits: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    seed: Seed = 42,
    out: Annotated[Path, typer.Option(help="Fold file to write; its .json goes beside it.")] = Path("folds/kfold5.csv"),
    groups: Groups = False,
) -> None:
    """Split the labels into stratified folds: the same file, byte for byte, every time."""
    from cassava_kit.folds import make_folds, write_folds

    frame, group_ids = _rows(data, labels, groups)
    split = make_folds(frame, n_splits=n_splits, seed=seed, groups=group_ids)
    write_folds(out, split)
    _tell(split.frame, "fold")
    print(f"{len(split.frame)} images in {split.n_splits} folds: {out} (hash {split.hash[:12]})")


def splits(
    kind: Annotated[str, typer.Option(help="85-15, 70-30, 60-20-20 (or other shares that sum to 100), or kfold.")],
    out: Annotated[Path, typer.Option(help="Split file to write; its .json goes beside it.")],
    data: DataOrNone = None,
    labels: Labels = None,
    seed: Seed = 42,
    n_splits: Annotated[int | None, typer.Option(help="Number of folds of kfold; default 5.")] = None,
    groups: Groups = False,
    as_folds: Annotated[
        Path | None, typer.Option(help="Also write train and val as a fold file: `train --fold 0` holds val out.")
    ] = None,
) -> None:
    """Split the labels once, stratified: train and val, train, val and test, or k folds."""
    from cassava_kit.folds import write_folds
    from cassava_kit.splits import make_split, write_split

    shares = _shares(kind)
    if shares is None:
        if as_folds is not None:
            raise ValueError("--as-folds goes with shares such as 85-15; kfold writes a fold file already")
        return folds(data, labels, 5 if n_splits is None else n_splits, seed, out, groups)
    if n_splits is not None:
        raise ValueError(f"--n-splits goes with --kind kfold, not with {kind}")
    if as_folds is not None and as_folds.with_suffix("").resolve() == out.with_suffix("").resolve():
        raise ValueError(f"--as-folds would be written over --out or its header, both are {out}; give it another name")
    frame, group_ids = _rows(data, labels, groups)
    split = make_split(frame, shares, seed=seed, groups=group_ids)
    write_split(out, split)
    _tell(split.frame, "part")
    print(f"{len(split.frame)} images in {len(shares)} parts: {out} (hash {split.hash[:12]})")
    if as_folds is not None:
        two = split.as_folds()
        write_folds(as_folds, two)
        print(f"train and val as folds: {as_folds} (hash {two.hash[:12]}); fold 0 is val")


def _shares(kind: str) -> tuple[float, ...] | None:
    """The shares that `85-15` names; None for kfold."""
    if kind == "kfold":
        return None
    percents = kind.split("-")
    if not all(text.isdecimal() for text in percents) or len(percents) not in (2, 3) or sum(map(int, percents)) != 100:
        raise ValueError(
            f"--kind must be kfold, or two or three whole percentages that sum to 100 such as 85-15, 70-30 or "
            f"60-20-20, got {kind!r}"
        )
    return tuple(int(text) / 100 for text in percents)


def _rows(data: Path | None, labels: Path | None, groups: bool) -> tuple[pd.DataFrame, np.ndarray | None]:
    """The rows to split, from a competition folder or a table alone, and their groups of near-duplicates."""
    from cassava_kit.data.table import read_competition, read_table

    if (data is None) == (labels is None):
        raise ValueError("give either --data DIR or --labels train.csv")
    if data is None:
        assert labels is not None
        if groups:
            raise ValueError("--groups looks at the images: give --data DIR instead of --labels")
        return read_table(labels), None
    table = read_competition(data)
    if table.unlisted:
        print(f"{len(table.unlisted)} images that no row names are left out (first: {table.unlisted[0]})")
    if not groups:
        return table.frame, None
    from cassava_kit.data.duplicates import find_duplicates
    from cassava_kit.paths import cache_dir

    paths = [table.image_dir / name for name in table.frame["image_id"]]
    group_ids = find_duplicates(paths, cache=cache_dir() / "fingerprints.npz")
    print(f"{len(table.frame) - len(set(group_ids))} images are near-duplicates of another; groups stay together")
    return table.frame, group_ids


def _tell(frame: pd.DataFrame, part: str) -> None:
    """Print how many images of each class each part has."""
    counts = frame.groupby(part)["label"].value_counts().unstack(fill_value=0)
    order = [name for name in ("train", "val", "test") if name in counts.index] or counts.index
    print(counts.loc[order].to_string())
