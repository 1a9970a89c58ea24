"""Verbs on predictions and labels: predict, ensemble, compare, clean, review, ablate (`<verb>_command`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cassava_kit.cli.options import CleanAction, Data, FoldFile, Jobs, SettingChanges, Views, Weights
from cassava_kit.cli.output import AsJson, Result, print_result
from cassava_kit.errors import UserError


def predict_command(
    member: Annotated[
        list[Path],
        typer.Option(help="Checkpoint, or folder of a recipe's runs; may be repeated, the mean of all is written."),
    ],
    images: Annotated[Path, typer.Option(help="Folder of images.")],
    out: Annotated[
        Path, typer.Option(dir_okay=False, help="Prediction file to write; its .json header goes beside it.")
    ],
    views: Views = "none",
    folds: Annotated[
        Path | None,
        typer.Option(help="Fold file: also score, which is refused where a member was trained on an image."),
    ] = None,
    test_part: Annotated[bool, typer.Option(help="Predict and score the fold file's test part alone.")] = False,
) -> None:
    """Predict every image of a folder with one or more checkpoints; with --folds, score them out of sample."""
    from cassava_kit.inference.folder import find_checkpoints, write_folder_predictions

    files = find_checkpoints(member)
    print(write_folder_predictions(files, images, out, views=views, folds=folds, test_part=test_part))


def ensemble_command(
    oof: Annotated[list[Path], typer.Option(help="Out-of-fold prediction file of a member; repeat for each.")],
    folds: FoldFile,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Weights file to write.")] = Path(
        "runs/ensemble-weights.json"
    ),
    as_json: AsJson = False,
) -> None:
    """Find ensemble weights by out-of-fold predictions; equal weights unless others are proved better."""
    from cassava_kit.evidence.blend import weigh_files
    from cassava_kit.files import read_json

    def weighed() -> Result:
        text = weigh_files(oof, folds, out)
        return Result(text, {"file": str(out), **read_json(out)})

    print_result(weighed, as_json=as_json)


def compare_command(
    a: Annotated[Path, typer.Argument(help="Out-of-fold prediction file.")],
    b: Annotated[Path, typer.Argument(help="The one that may be better.")],
    folds: FoldFile,
    as_json: AsJson = False,
) -> None:
    """Compare two members on the same rows: paired bootstrap interval, paired test, verdict."""
    from cassava_kit.evidence.compare import compare_files

    def compared() -> Result:
        found = compare_files(a, b, folds)
        return Result(str(found), found.values())

    print_result(compared, as_json=as_json)


Embedding = Annotated[
    Path | None,
    typer.Option(
        help="Vectors of the images, .npz (image_id, embedding) or .csv by image_id: adds neighbours' labels."
    ),
]
Backbone = Annotated[
    Path | None, typer.Option(help="Checkpoint whose features are the embedding, e.g. of the verb pretrain.")
]


def clean_command(
    oof: Annotated[list[Path], typer.Option(help="Out-of-fold prediction file of a member; repeat for each.")],
    folds: FoldFile,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Noise report to write, most suspicious row first.")] = Path(
        "clean.csv"
    ),
    cap: Annotated[float, typer.Option(help="Largest share of all rows to leave out of training.")] = 0.03,
    class_cap: Annotated[float, typer.Option(help="Largest share of any one class to leave out.")] = 0.10,
    embedding: Embedding = None,
    backbone: Backbone = None,
    data: Annotated[Path | None, typer.Option(help="Competition folder, for --backbone.")] = None,
    decisions: Annotated[
        list[Path] | None,
        typer.Option(help="Decisions exported from the review page; may be repeated, later files override."),
    ] = None,
) -> None:
    """List labels to look at, the most suspicious first; validation keeps every row and its given label."""
    from cassava_kit.cli.clean import clean_files
    from cassava_kit.evidence.noise.decisions import Caps

    if (backbone is None) != (data is None):
        raise UserError("--backbone CHECKPOINT and --data DIR go together: the checkpoint's features of the images")
    looked = (backbone, data) if backbone is not None and data is not None else None
    caps = Caps(cap, class_cap)
    print(clean_files(oof, folds, out, caps=caps, embedding=embedding, backbone=looked, decisions=decisions or []))
    print(out)


def review_command(
    report: Annotated[Path, typer.Argument(metavar="CLEAN.CSV", help="Noise report of the verb clean.")],
    data: Data,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Page to write.")] = Path("review.html"),
    oof: Annotated[
        list[Path] | None, typer.Option(help="Members whose votes are shown; default: those of the report.")
    ] = None,
    folds: Annotated[Path | None, typer.Option(help="Fold file of those members.")] = None,
    embedding: Embedding = None,
    backbone: Backbone = None,
    limit: Annotated[int, typer.Option(min=1, help="Photographs on the page, the most suspicious ones.")] = 2000,
) -> None:
    """Write a page to review suspicious images: labels and votes, keep, drop or relabel by keyboard."""
    from cassava_kit.report.review import ReviewFiles, review_files

    files = ReviewFiles(tuple(oof or []), folds, embedding, backbone)
    print(review_files(report, data, out, files=files, limit=limit))


def ablate_command(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or timm:NAME for any timm model.")],
    data: Data,
    folds: FoldFile,
    change: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="One variant: a setting, or several in quotes; may be repeated."),
    ] = None,
    clean: Annotated[
        Path | None, typer.Option(help="A variant on the training rows that this noise report keeps.")
    ] = None,
    clean_action: CleanAction = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the variants' runs and of the table.")] = Path(
        "runs/ablation"
    ),
    settings: SettingChanges = None,
    weights: Weights = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Train on at most this many images; all are still validated.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes; 0 loads in the main process.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder for decoded pixels, as for train.")] = None,
    jobs: Jobs = None,
) -> None:
    """Train a recipe with and without a change over the same folds, and compare each variant with the recipe."""
    from cassava_kit.training.ablation import ablate_files
    from cassava_kit.training.recipes import recipe

    if clean_action is not None and clean is None:
        raise UserError("--clean-action goes with --clean FILE")
    config = recipe(name).with_settings(settings or [])
    from cassava_kit.training.rows import TrainOptions

    action = clean_action or "drop"
    options = TrainOptions(weights=weights, limit=limit, clean=clean, clean_action=action, workers=workers, cache=cache)
    print(ablate_files(config, data, folds, out, changes=change or [], options=options, jobs=jobs))
