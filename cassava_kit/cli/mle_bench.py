"""The commands `mle-bench prepare` and `mle-bench grade`; entry point `mle_bench_app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cassava_kit.cli.app import CommandTable, make_app
from cassava_kit.cli.output import AsJson, Result, print_result


def prepare_command(
    data: Annotated[Path, typer.Argument(help="Folder of the downloaded competition, with train_tfrecords/.")],
    out: Annotated[Path, typer.Argument(file_okay=False, help="New folder for public/ and private/.")],
) -> None:
    """Split the competition as MLE-bench does, and compare the md5 sums of its tables."""
    from cassava_kit.data.tfrecords.mle_bench import prepare_mle_bench

    prepared = prepare_mle_bench(data, out)
    print(prepared)
    if not prepared.ok:
        raise typer.Exit(1)


def grade_command(
    file: Annotated[Path, typer.Argument(help="Submission: image_id,label.")],
    private: Annotated[Path, typer.Option(help="Folder private/ that `prepare` made, with test.csv.")],
    as_json: AsJson = False,
) -> None:
    """Grade a submission: accuracy, standard error, medal, and the chance of each medal."""
    from cassava_kit.evidence.medals import grade_submission

    def graded() -> Result:
        grade = grade_submission(file, private)
        return Result(str(grade), grade.values())

    print_result(graded, as_json=as_json)


BENCH_COMMANDS: CommandTable = {
    "MLE-bench": {
        "prepare": (prepare_command, "DIR mle"),
        "grade": (grade_command, "submission.csv --private mle/private"),
    }
}
mle_bench_app = make_app(
    "cassava-kit mle-bench",
    BENCH_COMMANDS,
    text="Measure the kit on MLE-bench's split of the competition.",
)
