"""What a run did: `RunReport`, which becomes `run.json`; lines for the terminal."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cassava_kit.errors import UserError
from cassava_kit.files import read_json, write_json
from cassava_kit.inference.submission_rows import printable

if TYPE_CHECKING:
    import numpy as np

REPORT_FILE = "run.json"


@dataclass
class RunReport:
    """What a run did, as written to `run.json`; times in seconds since the process began.

    `precisions` has the slowest precision of each checkpoint that ran, and why it was not a faster one.
    For the caller alone, and not in the file, are the `names` of the images and `probabilities` (N, K), the mean of the
    votes counted for each.
    """

    submission: str
    n_images: int = 0
    finished: bool = False
    error: str | None = None
    prior_alone: bool = True
    views: str = ""
    early_stop: dict[str, Any] = field(default_factory=dict)
    time_limit: float | None = None
    members_used: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    images_failed: dict[str, str] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    precisions: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    temperatures: dict[str, Any] = field(default_factory=dict)
    class_counts: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list, repr=False)
    probabilities: np.ndarray | None = field(default=None, repr=False, compare=False)

    def write(self, folder: Path) -> None:
        """Write `run.json`; names of files that are not text are shown with their bytes escaped.

        A folder that cannot be written costs a warning: the submission is worth more than its report.
        """
        values = {name: value for name, value in asdict(self).items() if name not in ("names", "probabilities")}
        try:
            write_json(folder / REPORT_FILE, _all_printable(values))
        except OSError as error:
            print_warning(f"{folder / REPORT_FILE} could not be written: {error}")


def print_line(text: str) -> None:
    """Print one line to standard output, at once."""
    print(printable(text), flush=True)


def print_warning(text: str) -> None:
    """Print one line to standard error, at once."""
    print(f"WARNING: {printable(text)}", file=sys.stderr, flush=True)


def _all_printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_all_printable(key): _all_printable(item) for key, item in value.items()}
    return [_all_printable(item) for item in value] if isinstance(value, list) else value


def read_run(working: Path) -> tuple[list[str], str]:
    """Read the run's own report, `run.json` in `working`.

    Returns:
        What went wrong (members left out, nothing voted), one line each; and one line on what was used.

    Raises:
        FileNotFoundError: there is no report.
        UserError: it is not a report of the submission run.
    """
    path = working / REPORT_FILE
    run = read_json(path)
    try:
        wrong = [f"the run stopped early: {run['error']}"] if run["error"] else []
        wrong += ["no member voted: the submission holds the most frequent class alone"] if run["prior_alone"] else []
        wrong += [f"{name} was left out: {reason}" for name, reason in run["left_out"].items()]
        names = ", ".join(dict.fromkeys(used["member"] for used in run["members_used"]))
        failed = f"; {len(run['images_failed'])} images could not be read" if run["images_failed"] else ""
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no report of a submission run ({type(error).__name__}: {error}); "
            "was it written by another version of the kit? Rehearse or run the notebook again"
        ) from None
    return wrong, f"members used: {names or 'no member'}{failed}"
