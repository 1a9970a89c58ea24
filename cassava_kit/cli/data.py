"""Verbs on the competition's data: `sample_command`, `sheet_command`, `tfrecords_command`, `folds_command`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cassava_kit.cli.options import Data
from cassava_kit.errors import UserError
from cassava_kit.files import check_apart, check_writable, header_path

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from cassava_kit.competition import Competition
    from cassava_kit.data.table import TrainTable


def sample_command(
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to make it in; default: the cache folder.")
    ] = None,
) -> None:
    """Draw the embedded sample competition, leaves in Kaggle's exact layout, and print its folder."""
    from cassava_kit.data.sample.make import ensure_sample

    print(ensure_sample(out))


def sheet_command(
    data: Data,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Picture to write, .png or .jpg.")] = Path("sheet.png"),
    columns: Annotated[int, typer.Option(min=1, help="Pictures of each class.")] = 8,
) -> None:
    """Draw a contact sheet: some images of every class, one row for each."""
    from cassava_kit.report.sheet import contact_sheet

    print(contact_sheet(data, out, columns=columns))


def tfrecords_command(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of .tfrec files, or one of them.")],
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Competition folder to make: train.csv and train_images/.")
    ],
) -> None:
    """Convert TFRecords to a competition folder; the images' bytes are unchanged."""
    from cassava_kit.data.tfrecords.records import unpack_tfrecords

    print(f"{len(unpack_tfrecords(source, out))} images: {out}")


DataOrNone = Annotated[
    Path | None, typer.Option("--data", help="Competition folder; its images are checked against the table.")
]
Labels = Annotated[Path | None, typer.Option("--labels", help="A table image_id,label alone; no image is opened.")]


def folds_command(
    data: DataOrNone = None,
    labels: Labels = None,
    n_splits: Annotated[int | None, typer.Option(min=2, help="Number of folds; default: 5.")] = None,
    holdout: Annotated[
        str | None,
        typer.Option(
            metavar="85-15|60-20-20|...",
            help="One split instead: percentages for training, validation (fold 0) and, if three, a test part, which "
            "no run trains on or is scored on.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the shuffle.")] = 42,
    groups: Annotated[
        bool | None,
        typer.Option("--groups/--no-groups", help="Keep near-duplicate images in one fold; default with --data."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Fold file to write, its .json goes beside it; default: folds/ and the split's name, "
            "e.g. folds/kfold5-seed42-groups.csv.",
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over another split at --out.")] = False,
) -> None:
    """Split the labels into stratified folds, or once (--holdout): the same file, byte for byte, every time."""
    from cassava_kit.competition import current
    from cassava_kit.data.folds import check_remade, write_folds
    from cassava_kit.data.stratify import check_splittable, method_name, split_folds, split_holdout

    if holdout is not None and n_splits is not None:
        raise UserError(f"--holdout {holdout} is one split; give it or --n-splits {n_splits}")
    shares = None if holdout is None else parse_shares(holdout)
    grouped = groups is not False and data is not None
    n_splits, task = n_splits or 5, current().task
    kind = f"kfold{n_splits}" if holdout is None else f"holdout{holdout}"
    out = out or Path("folds") / f"{kind}-seed{seed}{'-groups' if grouped else ''}.csv"
    check_apart([out, header_path(out)], [] if labels is None else [labels])
    check_writable(out)
    frame, table = _rows(data, labels, groups)
    # All that is known beforehand is said before the search for near-duplicates, which looks at every image.
    check_splittable(frame, n_splits if shares is None else len(shares), seed=seed, task=task)
    n_folds, method = n_splits if shares is None else 1, method_name(shares, grouped=grouped)
    check_remade(out, frame, method=method, seed=seed, n_splits=n_folds, replace=replace)
    group_ids = _find_groups(table) if grouped and table is not None else None
    if shares is None:
        split = split_folds(frame, n_splits=n_splits, seed=seed, groups=group_ids, task=task)
    else:
        split = split_holdout(frame, shares, seed=seed, groups=group_ids, task=task)
    write_folds(out, split, replace=replace)
    _print_counts(split.frame, current())
    what = f"{split.n_splits} folds" if shares is None else f"a {holdout} split; fold 0 is its validation part"
    print(f"{len(split.frame)} images in {what}: {out} (hash {split.hash[:12]})")


def parse_shares(text: str) -> tuple[float, ...]:
    """Return the shares that percentages such as 85-15 or 60-20-20 name.

    Raises:
        UserError: They are not two or three whole percentages above 0 that sum to 100.
    """
    percents = [int(part) if part.isdecimal() else 0 for part in text.split("-")]
    if len(percents) not in (2, 3) or min(percents) <= 0 or sum(percents) != 100:
        raise UserError(
            f"--holdout must be two or three whole percentages that sum to 100 such as 85-15, 70-30 or 60-20-20, got "
            f"{text!r}"
        )
    return tuple(percent / 100 for percent in percents)


def _rows(data: Path | None, labels: Path | None, groups: bool | None) -> tuple[pd.DataFrame, TrainTable | None]:
    """Return the rows to split, from a competition folder or from a table alone, and that folder's table."""
    from cassava_kit.data.table import read_competition, read_table

    if (data is None) == (labels is None):
        raise UserError("give either --data DIR or --labels train.csv")
    if data is None:
        assert labels is not None
        if groups:
            raise UserError("--groups needs the images: give --data DIR instead of --labels")
        print("near-duplicates are not looked for without the images; --data DIR keeps them together")
        return read_table(labels), None
    table = read_competition(data)
    if table.unlisted:
        print(f"{len(table.unlisted)} images that no row names are left out (first: {table.unlisted[0]})")
    return table.frame, table


def _find_groups(table: TrainTable) -> np.ndarray:
    """Return the groups (N,) of near-duplicates, and print how many there are."""
    from cassava_kit.data.duplicates import table_groups

    group_ids = table_groups(table)
    print(f"{len(table.frame) - len(set(group_ids))} images are near-duplicates of another; groups stay together")
    return group_ids


def _print_counts(frame: pd.DataFrame, competition: Competition) -> None:
    """Print how many images of each class each fold or part has, a class a line."""
    names = {k: f"{k} {name}" if competition.labels_are_numbers else name for k, name in enumerate(competition.classes)}
    counts = frame.groupby("label")["fold"].value_counts().unstack(fill_value=0)
    found: list[int] = frame["fold"].unique().tolist()
    order = sorted(found, key=lambda fold: (fold < 0, abs(fold)))
    counts = counts[order]
    counts = counts.rename(index=names, columns={-1: "training alone", -2: "test part"})
    print(counts.rename_axis(index=None).to_string())
