"""Run one verb: `cassava-kit VERB`, or `python -m cassava_kit VERB`. Entry point: `main`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cassava_kit.cli import data, evidence, pages, pretraining, setup, submission, training
from cassava_kit.cli.app import RecipeCommand, StageGroup, example, run_app

# The verbs by stage of the journey, each with one example.
STAGES: dict[str, dict[Callable[..., Any], str]] = {
    "Start": {
        setup.init: "init --slug cassava-leaf-disease-classification --data DIR",
        data.sample: "sample",
        data.tfrecords: "tfrecords train_tfrecords --out DIR",
        setup.weights: "weights resnet50 efficientnet_b4",
    },
    "Look at the data and split it": {
        pages.eda: "eda --data DIR --out eda.html",
        data.sheet: "sheet --data DIR --out sheet.png",
        data.folds: "folds --data DIR --n-splits 5 --out folds/kfold5.csv",
    },
    "Train": {
        training.recipes: "recipes resnet50",
        training.train: "train resnet50 --data DIR --folds folds/kfold5.csv --fold 0 --set epochs=12",
        pretraining.pretrain: "pretrain small_simclr --data DIR --out runs/simclr",
        pretraining.ssl_report: "ssl-report small_ssl_resnet --data DIR --folds folds/kfold5.csv "
        "--weights simclr=runs/simclr/backbone.safetensors",
        evidence.ablate: "ablate small_resnet --data DIR --folds folds/kfold5.csv --change label_smoothing=0",
    },
    "Judge by out-of-fold predictions": {
        pages.report: "report runs --data DIR --folds folds/kfold5.csv --out report.html",
        evidence.compare: "compare runs/resnet50/oof.csv runs/resnext50/oof.csv --folds folds/kfold5.csv",
        evidence.clean: "clean --oof runs/resnet50/oof.csv --folds folds/kfold5.csv --out clean.csv",
        evidence.review: "review clean.csv --data DIR --out review.html",
        evidence.ensemble: "ensemble --oof runs/resnet50/oof.csv --oof runs/resnext50/oof.csv --folds folds/kfold5.csv",
    },
    "Predict": {
        evidence.predict: "predict --member runs/resnet50 --images DIR/test_images --out predictions.csv",
        submission.submission: "submission --ensemble build/mine/weights --images DIR/test_images",
    },
}
TAKES_RECIPES = (training.train, evidence.ablate, pretraining.ssl_report)
HELP = "From a downloaded image-classification code competition to a scored submission."

app = typer.Typer(
    name="cassava-kit", cls=StageGroup, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.callback(
    help=HELP,
    epilog="`cassava-kit VERB --help` shows a verb's options and an example; `python submit.py` packs, rehearses and "
    "sends what was trained.",
    invoke_without_command=True,
)
def _options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the whole traceback of an error.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


for stage, verbs in STAGES.items():
    for function, command in verbs.items():
        kind = RecipeCommand if function in TAKES_RECIPES else TyperCommand
        app.command(cls=kind, rich_help_panel=stage, epilog=example(f"cassava-kit {command}"))(function)


def main() -> None:
    """Run the verb on the command line and exit with its code."""
    sys.exit(run_app(app, sys.argv[1:]))


if __name__ == "__main__":
    main()
