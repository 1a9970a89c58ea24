"""How a dry run ends: `print_scores`, `print_seconds`, `draw_submission` and the `next_commands`."""

from __future__ import annotations

import resource
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cassava_kit.competition import Competition
from cassava_kit.data.table import TrainTable
from cassava_kit.data.to_predict import ToPredict
from cassava_kit.evidence.compare import compare, correct
from cassava_kit.evidence.metrics import METRIC_NAMES, Score, baseline, baseline_probabilities, score
from cassava_kit.evidence.nested import Judgement
from cassava_kit.evidence.oof import Evidence
from cassava_kit.evidence.subset import advise
from cassava_kit.files import atomic_path
from cassava_kit.kaggle.pack.config import SUBMIT_COMMAND

PICTURE_FILE = "submission.jpg"
PICTURES_A_CLASS = 8
PRETRAINED_HINT = (
    "give pretrained weights: cassava-kit weights mobilenet, then --weights mobilenet=weights/mobilenet.safetensors"
)


def print_scores(console: Console, evidence: Evidence, judgement: Judgement, *, pretrained: bool = False) -> None:
    """Print the members' scores, the ensemble's on rows that its weights were not found on, and what that means.

    `pretrained` says that members began from given weights: other advice follows where nothing was learned.
    """
    metric, labels = evidence.metric, evidence.labels
    scores: list[tuple[str, Score, float | None]] = [
        (name, score(labels, p, metric), float(weight))
        for name, p, weight in zip(evidence.names, evidence.pred_probs, judgement.weights, strict=True)
    ]
    blended = judgement.blended  # weights and temperatures found on all rows would be flattered by them
    scores.append(("ensemble", score(labels, blended, metric), None))
    scores.append(("majority class", baseline(metric, labels, blended.shape[1]), None))
    table = Table(title=f"Out-of-fold {METRIC_NAMES[metric]} on {len(labels)} given labels")
    for heading in ("member", f"{METRIC_NAMES[metric]} ± s.e.", "weight"):
        table.add_column(heading)
    for name, found, weight in scores:
        table.add_row(name, found.figures, "" if weight is None else f"{weight:.3f}")
    console.print(table)
    console.print(f"the ensemble: {advise(evidence, judgement).sentence}")
    console.print(f"{judgement.tempering}; {judgement.tempering.calibration.moves}", markup=False)
    if warning := warn_of_useless(evidence, blended, pretrained=pretrained):
        console.print(warning, markup=False)


def warn_of_useless(evidence: Evidence, blended: np.ndarray, *, pretrained: bool) -> str | None:
    """Return one line where neither a member nor the ensemble, `blended` (N, K), is proved better than one answer."""
    metric, labels = evidence.metric, evidence.labels
    answers = dict(zip(evidence.names, evidence.pred_probs, strict=True)) | {"ensemble": blended}
    least = baseline_probabilities(metric, labels, blended.shape[1])
    found = correct(
        [compare(labels, least, p, metric=metric, names=("majority class", name)) for name, p in answers.items()]
    )
    if any(each.difference > 0 and each.proved for each in found):
        return None
    proved = "proved " if any(each.difference > 0 for each in found) else ""
    remedy = "train for longer: --set epochs=N" if pretrained else PRETRAINED_HINT
    return f"no member is {proved}better than the majority class; {remedy}"


def name_unanswered(answers: Mapping[str, int], table: TrainTable, competition: Competition) -> str | None:
    """Return one line with the classes that have training rows and no answer; None where there is none.

    Fewer answers than classes cannot name every class, and say nothing.
    """
    trained, answered = set(table.frame["label"]), set(answers.values())
    names = [name for label, name in enumerate(competition.classes) if label in trained - answered]
    return f"never answered: {', '.join(names)}" if names and len(answers) >= len(competition.classes) else None


def print_seconds(console: Console, seconds: Mapping[str, float]) -> None:
    """Print the seconds by stage, and the most memory that a process held."""
    times = Table(title="Seconds by stage")
    for heading in ("stage", "seconds"):
        times.add_column(heading)
    for name, each in seconds.items():
        times.add_row(name, f"{each:.1f}")
    times.add_row("all", f"{sum(seconds.values()):.1f}")
    console.print(times)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
    console.print(f"peak memory of the largest process {peak:.1f} GiB")


def next_commands(bundle: Path, data: Path | None, data_dir: Path, out: Path) -> str:
    """Return the commands for the next steps, one a line."""
    competition = f" --data {shlex.quote(str(data))}" if data else ""
    runs, folds, page = (shlex.quote(str(out / name)) for name in ("runs", "folds.csv", "report.html"))
    report = f"cassava-kit report {runs} --data {shlex.quote(str(data_dir))} --folds {folds} --out {page}"
    bundle_name = shlex.quote(str(bundle))
    steps = {
        report: "the members: curves, confusion, worst mistakes",
        f"{SUBMIT_COMMAND} rehearse --bundle {bundle_name}{competition} --cpus 4 --memory 29 --hidden 2000": (
            "many images, Kaggle's limits"
        ),
        f"{SUBMIT_COMMAND} submit --dry-run --bundle {bundle_name}": "every call to Kaggle, none made",
    }
    return "\n".join(["Next:", *(f"  {command}\n      {what}" for command, what in steps.items())])


def draw_submission(answers: Mapping[str, int], tests: ToPredict, competition: Competition, out: Path) -> Path | None:
    """Draw some test images of each predicted class under its name, `out/submission.jpg`; None where none can be read.

    `answers` are the submission's classes by its ids.
    """
    from cassava_kit.data.images import ImageError, read_image
    from cassava_kit.report.sheet import draw_sheet, encode_picture

    rows, titles = [], []
    rng = np.random.default_rng(0)
    for label, name in enumerate(competition.classes):
        found = [each for each in tests.names if answers[competition.submitted_id(each)] == label]
        pictures: list[np.ndarray] = []
        for image in rng.permutation(found):
            if len(pictures) == PICTURES_A_CLASS:
                break
            try:
                pictures.append(read_image(tests.folder / image))
            except ImageError:
                continue
        if pictures:
            rows.append(pictures)
            titles.append(f"{name}: {len(found)} of {len(tests.names)} test images")
    if not rows:
        return None
    path = out / PICTURE_FILE
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_picture(draw_sheet(titles, rows, columns=PICTURES_A_CLASS), path.suffix))
    return path
