"""Fetch and check the output of a kernel's run: `fetch_output`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cassava_kit.competition import Competition
from cassava_kit.files import read_json
from cassava_kit.inference.submission import read_answers
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.send.remote import KaggleError, Remote

SUBMISSION_FILES = r"^(submission\.csv|run\.json)$"
# All files except names that lead out of the folder they are fetched into.
ALL_FILES = r"^(?!/)(?!.*\.\.(/|$)).+$"

# The next step after an output that cannot be submitted.
MEND = "mend it and package anew, or push --again to run this build once more"


def fetch_output(
    remote: Remote, bundle: Bundle, kernel_id: str, *, version: int | None = None, out: Path | None = None
) -> Path:
    """Fetch the output of a version's run (default: the latest) into `out`, check it, and return the folder.

    `out` defaults to a folder in the bundle's. The files of a training run are moved to those of earlier runs only
    after all of them are checked.

    Raises:
        KaggleError: The submission is invalid, or a file of a training run cannot be read.
    """
    kernel = bundle.kernel
    output = out or bundle.home / ("output" if kernel.weights else f"output-{kernel.name}")
    output.mkdir(parents=True, exist_ok=True)
    if kernel.weights:
        for stale in ("submission.csv", "run.json"):
            (output / stale).unlink(missing_ok=True)
        remote.kernel_output(kernel_id, output, SUBMISSION_FILES, version=version)
        check_output(output, bundle.competition)
    else:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            remote.kernel_output(kernel_id, Path(scratch), ALL_FILES, version=version)
            for path in check_runs(Path(scratch), kernel_id):
                place = output / path.relative_to(scratch)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
    return output


def check_runs(output: Path, kernel_id: str) -> list[Path]:
    """Return the files in a folder, each read once to check it.

    Raises:
        KaggleError: There is no file, or one cannot be read.
    """
    from cassava_kit.data.folds import read_folds
    from cassava_kit.evidence.predictions import read_predictions
    from cassava_kit.models.checkpoint import read_info

    files = sorted(path for path in output.rglob("*") if path.is_file())
    if all(path.suffix == ".log" for path in files):  # the client always writes one
        raise KaggleError(f"{kernel_id} left no files; see its log on kaggle.com, then push --again")
    try:
        for path in files:
            if path.suffix == ".safetensors":
                read_info(path)
            elif path.suffix == ".json":
                read_json(path)
            elif path.name == "oof.csv":
                read_predictions(path)
            elif path.parent.name == "folds" and path.suffix == ".csv":
                read_folds(path)
    except ValueError as error:
        reason = str(error).replace(f"{output}/", "")
        raise KaggleError(f"the output of {kernel_id} is damaged: {reason}; fetch it again, or push --again") from None
    return files


def check_output(output: Path, competition: Competition) -> None:
    """Check `submission.csv` and the run's report before they are submitted.

    Raises:
        KaggleError: One of them is invalid; the message says what to do.
    """
    from cassava_kit.inference.report import read_run

    path = output / "submission.csv"
    if not path.is_file():
        raise KaggleError(f"the notebook left no submission.csv; see its log on kaggle.com, {MEND}")
    try:
        rows = read_answers(path, competition)
        wrong = read_run(output)[0] if (output / "run.json").is_file() else []
    except ValueError as error:
        raise KaggleError(f"not submitted: {error}; {MEND}") from None
    if not rows:
        raise KaggleError(f"not submitted: {path} has no rows; {MEND}")
    if wrong:
        raise KaggleError(f"not submitted: {'; '.join(wrong)}; {MEND}")
