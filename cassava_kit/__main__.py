"""The command line: `python -m cassava_kit <verb>`; each verb parses, loads, and calls one function."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cassava_kit.cli import run_app

app = typer.Typer(
    help="From a downloaded image-classification code competition to a scored submission.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Data = Annotated[Path, typer.Option(help="Competition folder: train.csv, train_images/, test_images/.")]
FoldFile = Annotated[Path, typer.Option("--folds", help="Fold file, as made by the verb folds.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change one setting; may be repeated.")
]


@app.callback()
def _options(verbose: Annotated[bool, typer.Option(help="Show the whole traceback of an error.")] = False) -> None:
    """From a downloaded image-classification code competition to a scored submission."""


@app.command()
def sample(
    out: Annotated[Path | None, typer.Option(help="Folder to make it in; default: the cache folder.")] = None,
) -> None:
    """Make the embedded sample competition: drawn leaves in Kaggle's exact layout."""
    from cassava_kit.sample import ensure_sample

    print(ensure_sample(out))


@app.command()
def sheet(
    data: Data,
    out: Annotated[Path, typer.Option(help="Picture to write, .png or .jpg.")] = Path("sheet.png"),
    columns: Annotated[int, typer.Option(min=1, help="Pictures of each class.")] = 8,
) -> None:
    """Put some pictures of every class on one contact sheet, a row a class."""
    from cassava_kit.report.sheet import contact_sheet

    print(contact_sheet(data, out, columns=columns))


@app.command()
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


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Recipe to print in full.")] = None) -> None:
    """List the recipes, or print one recipe's full configuration."""
    from cassava_kit.recipes import recipe, recipe_names

    if name is not None:
        print(recipe(name).model_dump_json(indent=2))
        return
    for listed in recipe_names():
        print(f"{listed:18} {recipe(listed).about}")


@app.command()
def train(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or timm:NAME for any timm model.")],
    data: Data,
    folds: FoldFile,
    fold: Annotated[str, typer.Option(help="Number of the fold to hold out, or 'all'.")] = "all",
    out: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    weights: Annotated[
        Path | None, typer.Option(help="First weights: .safetensors, or .pth with tensors alone.")
    ] = None,
    settings: Settings = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Train on at most so many images; all are still validated.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes; 0 loads in the main process.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for decoded pixels, made once (needs the setting train_pixels).")
    ] = None,
) -> None:
    """Train a recipe on all folds but one, and write checkpoint and out-of-fold predictions; 'all' joins the folds."""
    from cassava_kit.recipes import recipe

    config = recipe(name).with_settings(settings or [])
    from cassava_kit.data.table import read_competition
    from cassava_kit.folds import read_folds
    from cassava_kit.training.recipe_run import train_recipe

    split = read_folds(folds)
    numbers = list(range(split.n_splits)) if fold == "all" else [split.check_fold(_whole_number(fold, "--fold"))]
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"no weights file {weights}")
    table = read_competition(data)
    train_recipe(config, table, split, out, folds=numbers, weights=weights, limit=limit, workers=workers, cache=cache)


@app.command()
def pretrain(
    method: Annotated[str, typer.Argument(help="byol, swav, simclr or moco as in its paper, or a recipe of one.")],
    data: Annotated[
        Path | None, typer.Option(help="Competition folder; all its training images are used, labels unseen.")
    ] = None,
    images: Annotated[list[Path] | None, typer.Option(help="Folder of further images; may be repeated.")] = None,
    backbone: Annotated[str | None, typer.Option(help="timm:NAME instead of the recipe's backbone.")] = None,
    init: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    out: Annotated[Path, typer.Option(help="Run folder; the backbone is backbone.safetensors in it.")] = Path(
        "runs/pretrain"
    ),
    settings: Settings = None,
) -> None:
    """Pretrain a backbone on images without labels, and export it as plain timm weights for train --weights."""
    from cassava_kit.ssl.folder import pretrain_folders

    print(pretrain_folders(method, data, images or [], backbone=backbone, init=init, out=out, settings=settings or []))


@app.command()
def predict(
    members: Annotated[list[Path], typer.Option(help="Checkpoint; may be repeated, their mean is written.")],
    images: Annotated[Path, typer.Option(help="Folder of images.")],
    out: Annotated[Path, typer.Option(help="Prediction file to write; its .json header goes beside it.")],
    views: Annotated[str, typer.Option(help="Test-time views: none, flips, d4 or d4+zoom.")] = "none",
    folds: Annotated[Path | None, typer.Option(help="With --labels: score only rows the members never saw.")] = None,
) -> None:
    """Predict every image of a folder with one or more checkpoints; with --folds, score them out of sample."""
    from cassava_kit.inference.folder import predict_folder

    summary = predict_folder(members, images, views=views, folds=folds, out=out)
    print(summary)


@app.command()
def ensemble(
    oof: Annotated[list[Path], typer.Option(help="Out-of-fold prediction file of a member; repeat for each.")],
    folds: FoldFile,
    out: Annotated[Path, typer.Option(help="Weights file to write.")] = Path("runs/ensemble-weights.json"),
) -> None:
    """Weigh members by their out-of-fold predictions; the plain mean stays unless another is proved better."""
    from cassava_kit.blend import weigh_files

    print(weigh_files(oof, folds, out))


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Out-of-fold prediction file.")],
    b: Annotated[Path, typer.Argument(help="The one that may be better.")],
    folds: FoldFile,
) -> None:
    """Compare two members on the same rows: paired bootstrap interval, McNemar's test, and whether it is proved."""
    from cassava_kit.compare import compare_files

    print(compare_files(a, b, folds))


@app.command()
def clean(
    oof: Annotated[list[Path], typer.Option(help="Out-of-fold prediction file of a member; repeat for each.")],
    folds: FoldFile,
    out: Annotated[Path, typer.Option(help="Noise report to write, most suspicious row first.")] = Path("clean.csv"),
    cap: Annotated[float, typer.Option(help="Largest share of all rows to leave out of training.")] = 0.03,
    decisions: Annotated[Path | None, typer.Option(help="Decisions exported from the review page.")] = None,
) -> None:
    """Find wrong labels by out-of-fold predictions; validation keeps every row and its given label."""
    from cassava_kit.noise.clean import clean_files
    from cassava_kit.noise.decisions import Caps

    print(clean_files(oof, folds, out, caps=Caps(overall=cap), decisions=decisions))


@app.command()
def review(
    report: Annotated[Path, typer.Argument(metavar="CLEAN.CSV", help="Noise report of the verb clean.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("review.html"),
    oof: Annotated[list[Path] | None, typer.Option(help="Members whose votes are shown; may be repeated.")] = None,
    folds: Annotated[Path | None, typer.Option(help="Fold file of those members.")] = None,
) -> None:
    """Make one page for the eyes: suspicious pictures, their labels and votes, keep/drop/relabel by keyboard."""
    from cassava_kit.report.review import review_files

    print(review_files(report, data, out, oof=oof or [], folds=folds))


def _whole_number(text: str, name: str) -> int:
    if not text.isdigit():
        raise ValueError(f"{name} must be a whole number or 'all', got {text!r}")
    return int(text)


def main() -> None:
    """Entry point: one line and exit code 2 for what the user can mend, a traceback with --verbose."""
    sys.exit(run_app(app, sys.argv[1:]))


if __name__ == "__main__":
    main()
