"""The verb submission, the notebook's run at home: `submission_command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def submission_command(
    ensemble: Annotated[Path, typer.Option(help="Folder of checkpoints with ensemble.json, or that file.")],
    images: Annotated[Path, typer.Option(help="Folder of images.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="Submission to write; run.json goes beside it.")] = Path(
        "submission.csv"
    ),
    time_limit: Annotated[float | None, typer.Option(help="Seconds, from the start of this process.")] = None,
    early_stop: Annotated[str, typer.Option(help="certified (no label can change) or off.")] = "certified",
    views: Annotated[
        str | None, typer.Option(help="none, hflip, flips, d4 or d4+zoom; else the ensemble's own.")
    ] = None,
    pixel_memory: Annotated[float | None, typer.Option(help="Gigabytes of pixels to keep in memory.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")] = "auto",
) -> None:
    """Predict every image with an ensemble within a time limit; a valid submission exists from the start."""
    from cassava_kit.inference.options import RunOptions
    from cassava_kit.inference.run import run_and_check

    options = RunOptions(views=views, early_stop=early_stop, memory=pixel_memory, device=device)
    print(run_and_check(ensemble, images, out, time_limit=time_limit, options=options))
