"""The command line: `python -m cassava_kit <verb>`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cassava_kit.cli import run_app
from cassava_kit.verbs import data, evidence, pages, pretraining, setup, submission, training

VERBS = (
    setup.init,
    setup.weights,
    data.sample,
    data.sheet,
    data.tfrecords,
    data.folds,
    data.splits,
    pages.eda,
    pages.report,
    training.recipes,
    training.train,
    pretraining.pretrain,
    pretraining.ssl_report,
    evidence.predict,
    evidence.ensemble,
    evidence.compare,
    evidence.clean,
    evidence.review,
    evidence.ablate,
    submission.submission,
)

app = typer.Typer(
    help="From a downloaded image-classification code competition to a scored submission.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(verbose: Annotated[bool, typer.Option(help="Show the whole traceback of an error.")] = False) -> None:
    """From a downloaded image-classification code competition to a scored submission."""


for verb in VERBS:
    app.command()(verb)


def main() -> None:
    """Entry point: one line and exit code 2 for what the user can mend, a traceback with --verbose."""
    sys.exit(run_app(app, sys.argv[1:]))


if __name__ == "__main__":
    main()
