"""Verbs on the competition's data: sample, sheet, folds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cassava_kit.verbs.options import Data


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


def folds(
    data: Annotated[
        Path | None, typer.Option(help="Competition folder; its images are checked against the table.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="A table image_id,label alone; no image is opened.")] = None,
    n_splits: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the shuffle.")] = 42,
    out: Annotated[Path, typer.Option(help="Fold file to write; its .json goes beside it.")] = Path("folds/kfold5.csv"),
    groups: Annotated[
        bool, typer.Option("--groups", help="Keep near-duplicate images in one fold (needs --data).")
    ] = False,
) -> None:
    """Split the labels into stratified folds: the same file, byte for byte, every time."""
    from cassava_kit.data.table import read_competition, read_table
    from cassava_kit.folds import make_folds, write_folds

    if (data is None) == (labels is None):
        raise ValueError("give either --data DIR or --labels train.csv")
    group_ids = None
    if data is not None:
        table = read_competition(data)
        frame = table.frame
        if table.unlisted:
            print(f"{len(table.unlisted)} images that no row names are left out (first: {table.unlisted[0]})")
    else:
        assert labels is not None
        frame = read_table(labels)
    if groups:
        if data is None:
            raise ValueError("--groups looks at the images: give --data DIR instead of --labels")
        from cassava_kit.data.duplicates import find_duplicates
        from cassava_kit.paths import cache_dir

        paths = [table.image_dir / name for name in frame["image_id"]]
        group_ids = find_duplicates(paths, cache=cache_dir() / "fingerprints.npz")
        print(f"{len(frame) - len(set(group_ids))} images are near-duplicates of another; groups stay together")
    split = make_folds(frame, n_splits=n_splits, seed=seed, groups=group_ids)
    write_folds(out, split)
    shares = split.frame.groupby("fold")["label"].value_counts().unstack(fill_value=0)
    print(shares.to_string())
    print(f"{len(split.frame)} images in {split.n_splits} folds: {out} (hash {split.hash[:12]})")
