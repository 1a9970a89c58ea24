"""Verbs that set something up: facts of a competition (init), published weights (weights), notebooks (kernels)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cassava_kit.errors import UserError


def init_command(
    slug: Annotated[str | None, typer.Option(help="Last part of the competition's address on kaggle.com.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data: images, and a table of labels or a folder for each class.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Default: the slug's words.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class names in the order of their labels 0, 1, ..., with commas.")
    ] = None,
    label_map: Annotated[str | None, typer.Option(help="JSON file in --data: label to class name.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column that names the image.")] = None,
    ids_have_suffix: Annotated[
        bool | None, typer.Option("--ids-have-suffix/--ids-without-suffix", help="Whether ids end as the files do.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the training table that holds the label.")] = None,
    image_suffix: Annotated[str | None, typer.Option(help="What image files end in, e.g. .png.")] = None,
    train_csv: Annotated[str | None, typer.Option(help="Name of the training table.")] = None,
    train_images: Annotated[str | None, typer.Option(help="Name of the training images' folder.")] = None,
    test_images: Annotated[str | None, typer.Option(help="Name of the test images' folder.")] = None,
    test_table: Annotated[
        str | None, typer.Option(help="Table of the ids to predict, where these are not all images of a folder.")
    ] = None,
    separator: Annotated[str | None, typer.Option(help="What divides the table's cells: , ; tab or |.")] = None,
    sample_submission: Annotated[str | None, typer.Option(help="Name of the sample submission.")] = None,
    metric: Annotated[str | None, typer.Option(help="accuracy, macro_f1 or log_loss.")] = None,
    probability_columns: Annotated[
        str | None, typer.Option(help="With log_loss: the submission's columns, one a class, with commas.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Slug of the kit's dataset on Kaggle; kernels are named after it.")
    ] = None,
    hidden_images: Annotated[int | None, typer.Option(min=1, help="About how many images are scored.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(min=1, help="What a submission may take; usually 9.")] = None,
    out: Annotated[
        Path, typer.Option(dir_okay=False, help="File to write; the kit finds it as competition.json here.")
    ] = Path("competition.json"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Set the kit up for other data: recognise a folder's tables, images and classes, write competition.json.

    Tables, class folders and the form of a submission are read from --data, and said. Asked is only what no folder
    shows: the slug and the metric; where nobody can answer, the folder's name and accuracy are taken.
    """
    from cassava_kit.data.new_competition import init_competition, split_names

    plain = {
        "slug": slug,
        "title": title,
        "label_map": label_map,
        "id_column": id_column,
        "ids_have_suffix": ids_have_suffix,
        "label_column": label_column,
        "image_suffix": image_suffix,
        "train_csv": train_csv,
        "train_images": train_images,
        "test_images": test_images,
        "test_table": test_table,
        "separator": "\t" if separator == "tab" else separator,
        "sample_submission": sample_submission,
        "metric": metric,
        "dataset": dataset,
        "hidden_images": hidden_images,
        "gpu_hours": gpu_hours,
    }
    lists = {"classes": classes, "probability_columns": probability_columns}
    given: dict[str, Any] = {name: text for name, text in plain.items() if text is not None}
    given |= {name: split_names(text) for name, text in lists.items() if text is not None}
    ask = _ask if sys.stdin.isatty() else None
    print(init_competition(given, out, data=data, ask=ask, force=force))


def weights_command(
    names: Annotated[
        list[str], typer.Argument(metavar="RECIPE...", help="Recipes, or timm:NAME, to fetch weights for.")
    ],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the files.")] = Path("weights"),
    owner: Annotated[
        str | None, typer.Option(help="Your name on Kaggle: also describe the folder as a dataset of yours.")
    ] = None,
) -> None:
    """Download recipes' ImageNet weights, for --weights and for the offline notebooks."""
    from cassava_kit.training.hub import fetch_weights

    for line in fetch_weights(names, out, owner=owner):
        print(line)


def kernels_command(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 where a file is out of date.")
    ] = False,
    executed: Annotated[
        bool,
        typer.Option(
            "--executed", help="Also execute them on the embedded sample: kernels/NAME/executed.html (needs the demo)."
        ),
    ] = False,
) -> int:
    """Generate the notebooks of `kernels/` and their metadata from their sources."""
    from cassava_kit.kaggle.pack.config import INSTALLED_PROJECT, project_root
    from cassava_kit.kaggle.pack.kernels import build_kernels

    root = project_root()
    if root == INSTALLED_PROJECT:
        raise UserError("the notebooks are generated in the repository, this kit is installed; clone it and call there")
    stale = ", ".join(str(path) for path in build_kernels(root, check))
    if check and stale:
        print(f"out of date: {stale}; run: cassava-kit kernels", file=sys.stderr)
        return 1
    print(f"written: {stale}" if stale else "every notebook is up to date")
    if executed:
        from cassava_kit.cli.executed import write_executed

        write_executed(root, root / "build" / "executed")
    return 0


def _ask(question: str, usual: str) -> str:
    """Ask one question at the terminal."""
    return str(typer.prompt(question, default=usual or None))
