"""Judge what a rehearsed notebook left by what Kaggle asks of it: `judge_run`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cassava_kit.data.to_predict import listed_names
from cassava_kit.files import write_text
from cassava_kit.inference.report import read_run
from cassava_kit.inference.submission import check_answers
from cassava_kit.kaggle.pack.credentials import collect_secrets, redact
from cassava_kit.kaggle.pack.kernels import Kernel
from cassava_kit.kaggle.rehearse.isolation import Isolation
from cassava_kit.kaggle.rehearse.layout import competition_folder
from cassava_kit.kaggle.rehearse.options import NotebookRun, Rehearsal

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def judge_run(
    run: NotebookRun, kernel: Kernel | None, result: dict[str, Any], isolation: Isolation, changed: Sequence[Path]
) -> Rehearsal:
    """Return the verdict on a run, and write its log without credentials into `run.out`.

    `kernel` is None for a notebook that is not the kit's: its submission alone is checked. `result` is that of
    `execute.py`; `changed` are the inputs that the notebook changed.
    """
    secrets = collect_secrets()
    log = COLOURS.sub("", redact(result.get("log", ""), secrets))
    write_text(run.out / "log.txt", log)
    executed = run.out / run.notebook.name
    if executed.is_file():
        write_text(executed, redact(executed.read_text(encoding="utf-8"), secrets))
    wrong = [redact(result["error"], secrets)] if result["error"] else []
    wrong += [f"the notebook changed its input: {', '.join(map(str, changed))}"] if changed else []
    ended = not result["error"]
    if kernel is None or kernel.weights:
        found, left = _check_submission(run, reports=kernel is not None and ended)
    else:
        found, left = _check_output(run, kernel, ended)
    wrong += found
    seconds, memory = result.get("seconds", 0.0), result.get("peak_memory", 0)
    used = f"used {seconds:.0f} s and {memory / 2**30:.1f} GiB"
    how = ", ".join(filter(None, (f"{run.layout} layout", isolation.report, run.options.limits, used)))
    said = f"FAILED ({how}): {'; '.join(wrong)}" if wrong else f"passed ({how}): {left}"
    submission = run.working / "submission.csv"
    return Rehearsal(not wrong, f"rehearsal {said}", submission, seconds, isolation.report, log, memory)


def _check_submission(run: NotebookRun, *, reports: bool) -> tuple[list[str], str]:
    """Return what is wrong with the submission, with `reports` with the run's own report too, and one line on it."""
    try:
        rows = str(check_answers(run.working / "submission.csv", _mounted_images(run), run.competition))
        wrong, notes = read_run(run.working) if reports else ([], "")
    except (ValueError, FileNotFoundError) as error:
        return [str(error)], ""
    return wrong, "; ".join(filter(None, (rows, notes)))


def _mounted_images(run: NotebookRun) -> Path | list[str]:
    """Return the folder of the test images that the notebook saw, or the names that its table of them lists."""
    at = competition_folder(run.competition.slug, run.layout)
    source = {mount.target: mount.source for mount in run.mounts}
    images = source[at / run.competition.test_images]
    if not run.competition.test_table:
        return images
    return listed_names(source[at / run.competition.test_table], images, run.competition)


def _check_output(run: NotebookRun, kernel: Kernel, ended: bool) -> tuple[list[str], str]:
    """Return what is missing of the files that the kernel must leave, and one line on what is there."""
    found = sorted(path.relative_to(run.working).as_posix() for path in run.working.glob(kernel.leaves))
    return ([] if found or not ended else [f"it left no {kernel.leaves}"]), f"it left {', '.join(found)}"
