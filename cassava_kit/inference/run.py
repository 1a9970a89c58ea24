"""The submission run: a valid file in the first second, then the best one within the time: `run_submission`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from cassava_kit.competition import Competition, current
from cassava_kit.errors import UserError
from cassava_kit.files import find_folder
from cassava_kit.inference.clock import Clock, process_start
from cassava_kit.inference.ensemble import ENSEMBLE_FILE
from cassava_kit.inference.members import load_members, read_prior
from cassava_kit.inference.options import RunOptions
from cassava_kit.inference.report import RunReport, print_line, print_warning
from cassava_kit.inference.submission import check_answers, submission_ids, write_answers
from cassava_kit.inference.votes import Votes


def run_submission(
    images_dir: str | Path,
    weights_dir: str | Path,
    out: str | Path,
    *,
    time_limit: float | None = None,
    started: float | None = None,
    options: RunOptions | None = None,
    competition: Competition | None = None,
    names: Sequence[str] | None = None,
) -> RunReport:
    """Write `out` for every image in `images_dir` with the ensemble in `weights_dir`, and `run.json` beside it.

    `names` are the files to predict where these are not all images in the folder (`to_predict.read_test`).

    The file is valid from the first second (the prior's class) and only gets better; it is replaced atomically. The
    limit, in seconds, counts from `started` (seconds since the epoch; None: the start of this process). Only a missing
    images folder or a wrong option raises; any other failure is printed, written to the report, and leaves
    the best file so far.
    """
    clock = Clock(time_limit, process_start() if started is None else started)
    out, weights_dir, competition = Path(out), Path(weights_dir), competition or current()
    options = options or RunOptions()
    if competition.probability_columns and options.early_stop != "off":
        print_line("the submission holds probabilities: every vote changes them, so no image stops early")
        options = replace(options, early_stop="off")
    names = submission_ids(images_dir) if names is None else list(names)
    prior = np.asarray(read_prior(weights_dir, competition))
    try:
        write_votes(out, names, competition, Votes(len(names), np.zeros(0), prior))
    except OSError as error:
        if not out.is_file():
            raise
        print_warning(f"{out} could not be replaced, the file that is there stands for now: {error}")
    report = RunReport(str(out), len(names), time_limit=time_limit, early_stop={"kind": options.early_stop})
    report.names = list(names)
    report.timings["first_file"] = round(clock.used, 3)
    first = int(prior.argmax())
    report.class_counts = np.bincount([first] * len(names), minlength=len(prior)).tolist()
    report.write(out.parent)
    print_line(f"{len(names)} images in {images_dir}; {out} holds {competition.classes[first]} for all of them")
    try:
        members = load_members(weights_dir, competition, clock=clock)
        for name, reason in members.left_out.items():
            print_warning(f"{name} is left out: {reason}")
        report.left_out = dict(members.left_out)
        if names and members.checkpoints:
            from cassava_kit.inference.ensemble_run import EnsembleRun

            paths = [Path(images_dir) / name for name in names]
            write = partial(write_votes, out, names, competition)
            EnsembleRun(paths, members, clock=clock, options=options, report=report, write=write).run()
        report.finished = True
    except Exception as error:
        report.error = f"{type(error).__name__}: {error}"
        print_warning(f"the run stopped early ({report.error}); the best file so far stands")
    if report.prior_alone:
        what = "NO MEMBER VOTED: the submission holds the prior's class alone" if names else "no images: it has no rows"
        print_warning(what)
    report.timings["total"] = round(clock.used, 3)
    report.write(out.parent)
    print_line(
        f"{out}: {len(names)} images, {len(report.images_failed)} unreadable, {clock.used:.1f} s since the start"
    )
    return report


def run_and_check(
    weights: str | Path,
    images_dir: str | Path,
    out: str | Path,
    *,
    time_limit: float | None = None,
    options: RunOptions | None = None,
) -> str:
    """Run the verb submission: a folder of weights or its `ensemble.json` in, a checked file out.

    Returns:
        The summary of the submission, for the user.

    Raises:
        FileNotFoundError: a folder is missing; nothing was written.
        UserError: no checkpoint can vote, or a device does not compute: nothing was written. Or no member voted in the
            run: the file holds the prior's class.
    """
    weights = Path(weights)
    folder = weights.parent if weights.name == ENSEMBLE_FILE else weights
    find_folder(folder, f"give one with {ENSEMBLE_FILE} and its checkpoints", what="folder of weights")
    options = options or RunOptions()
    submission_ids(images_dir)
    require_members(folder)
    if options.device != "auto":
        from cassava_kit.inference.machine import usable_devices

        usable_devices(options.device)
    report = run_submission(images_dir, folder, out, time_limit=time_limit, options=options)
    summary = check_answers(out, images_dir)
    if report.prior_alone and summary.n_images:
        why = report.error or "; ".join(f"{name}: {reason}" for name, reason in report.left_out.items())
        raise UserError(f"{out} holds the prior's class alone: no member voted ({why or 'no time or no checkpoint'})")
    return str(summary)


def require_members(folder: Path) -> None:
    """Raise UserError with the reasons where no checkpoint of a weights folder can vote."""
    members = load_members(folder)
    if not members.checkpoints:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in members.left_out.items())
        raise UserError(
            f"no member in {folder} can vote ({reasons}); give {ENSEMBLE_FILE} with its checkpoints beside it"
        )


def write_votes(out: Path, names: list[str], competition: Competition, votes: Votes) -> None:
    """Write what the votes counted so far answer, in the form that the competition takes."""
    answers = votes.probabilities() if competition.probability_columns else votes.labels()
    write_answers(out, names, answers, competition)
