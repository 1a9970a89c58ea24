"""Noise reports and the training rows that follow from them; entry points `make_noise_report`, `apply_noise_report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cassava_kit.errors import UserError
from cassava_kit.evidence.noise.detect import LabelErrors
from cassava_kit.evidence.predictions import read_image_rows
from cassava_kit.files import csv_text, find_file, write_text

REPORT_COLUMNS = ["image_id", "label", "suggested_label", "label_quality", "keep", "by_eye"]
AGREEMENT = "neighbour_agreement"  # one more column where an embedding is given
ACTIONS = ("drop", "flip", "weight", "soften")
WEIGHTED = ("weight", "soften")  # the actions whose rows do not all count the same
VERDICTS = ("keep", "drop", "relabel")
HARD_CAP = 0.10
CLEANED_SEEN = "training rows were cleaned with a noise report whose models had learnt labels of the scored fold"


@dataclass(frozen=True)
class Caps:
    """How much may be removed: a share of all rows (at most .10) and a share of each class's rows."""

    overall: float = 0.03
    per_class: float = 0.10

    def __post_init__(self) -> None:
        if not 0 <= self.overall <= HARD_CAP:
            raise UserError(
                f"the cap must be a share in 0..{HARD_CAP}, got {self.overall}; removing more than a tenth of the rows "
                "lowered the score of every team that published it"
            )
        if not 0 <= self.per_class <= 1:
            raise UserError(f"the cap of a class must be a share in 0..1, got {self.per_class}")


def choose_removed(
    labels: np.ndarray, quality: np.ndarray, flags: np.ndarray, *, caps: Caps, spent: np.ndarray | None = None
) -> np.ndarray:
    """Return the flagged rows to remove, (N,) bool: the most suspicious within both caps; of equal rows the earlier.

    `spent` (N,) marks rows that were dropped by eye and count against the caps.
    """
    done = np.zeros(len(labels), bool) if spent is None else spent
    rows = np.flatnonzero(flags & ~done)
    rows = rows[np.argsort(quality[rows], kind="stable")]
    room = np.floor(caps.per_class * np.bincount(labels) + 1e-9) - np.bincount(labels[done], minlength=labels.max() + 1)
    nth_of_class = pd.Series(labels[rows]).groupby(labels[rows]).cumcount().to_numpy()
    fits = rows[nth_of_class < room[labels[rows]]]
    left = int(caps.overall * len(labels) + 1e-9) - int(done.sum())
    removed = np.zeros(len(labels), bool)
    removed[fits[: max(left, 0)]] = True
    return removed


def make_noise_report(
    image_ids: np.ndarray,
    errors: LabelErrors,
    *,
    caps: Caps | None = None,
    decisions: pd.DataFrame | None = None,
    agreement: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return the noise report, most suspicious first: `image_id,label,suggested_label,label_quality,keep,by_eye`.

    `decisions` (`image_id,decision,label`, from the review page) come before any estimate, and `by_eye` marks their
    rows: a kept one is never removed, a dropped one is not kept, a relabelled one is kept with its new label as
    `suggested_label`, which `apply_noise_report` takes whatever the action. `agreement` (N,) becomes the column
    `neighbour_agreement`.

    Raises:
        UserError: where the decisions name other images or labels, or alone drop more than a tenth of the rows.
    """
    labels = errors.labels
    looked, dropped, suggested = _decided(image_ids, errors, decisions)
    certain = looked & (dropped | (suggested != labels))
    flags = errors.flags & ~looked
    removed = dropped | choose_removed(labels, errors.quality, flags, caps=caps or Caps(), spent=dropped)
    frame = pd.DataFrame(
        {
            "image_id": image_ids,
            "label": labels,
            "suggested_label": suggested,
            "label_quality": np.where(certain, 0.0, errors.quality),
            "keep": ~removed,
            "by_eye": looked,
        }
    )
    if agreement is not None:
        frame[AGREEMENT] = agreement
    return frame.sort_values(["label_quality", "image_id"], kind="stable").reset_index(drop=True)


def _decided(
    image_ids: np.ndarray, errors: LabelErrors, decisions: pd.DataFrame | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which rows were decided by eye (N,), which of them are dropped (N,), and the suggested labels (N,)."""
    looked, dropped = np.zeros(len(image_ids), bool), np.zeros(len(image_ids), bool)
    suggested = errors.suggested.copy()
    if decisions is None:
        return looked, dropped, suggested
    check_decisions(decisions, image_ids, errors.pred_probs.shape[1])
    at = pd.Series(np.arange(len(image_ids)), index=image_ids)[decisions["image_id"]].to_numpy()
    looked[at] = True
    dropped[at] = (decisions["decision"] == "drop").to_numpy()
    # A kept or dropped row keeps its given label, whatever was suggested.
    relabelled = (decisions["decision"] == "relabel").to_numpy()
    suggested[at] = np.where(relabelled, decisions["label"].to_numpy(), errors.labels[at])
    if dropped.mean() > HARD_CAP:
        raise UserError(
            f"the decisions drop {dropped.sum()} of {len(dropped)} rows, more than {HARD_CAP:.0%}; "
            "review the most suspicious rows alone"
        )
    return looked, dropped, suggested


def write_noise_report(path: str | Path, report: pd.DataFrame) -> None:
    """Write the noise report, atomically."""
    columns = [*REPORT_COLUMNS, *([AGREEMENT] if AGREEMENT in report else [])]
    write_text(path, csv_text(_with_by_eye(report)[columns], "%.6g"))


def read_noise_report(path: str | Path) -> pd.DataFrame:
    """Read and check a noise report."""
    path = find_file(path, "noise report", "make one with: python -m cassava_kit clean")
    report = read_image_rows(path)
    report = _with_by_eye(report)
    if list(report.columns) not in (REPORT_COLUMNS, [*REPORT_COLUMNS, AGREEMENT]):
        raise UserError(f"{path} must have the columns {','.join(REPORT_COLUMNS)}, got {','.join(report.columns)}")
    flags = report["keep"].dtype == bool and report["by_eye"].dtype == bool
    named_once = not (report["image_id"].duplicated() | (report["image_id"] == "")).any()
    if not named_once or report.isna().to_numpy().any() or not flags:
        raise UserError(f"{path} must name every image once, with True or False in keep and by_eye and no empty cell")
    whole = all(pd.api.types.is_integer_dtype(report[column]) for column in ("label", "suggested_label"))
    numbers = pd.api.types.is_numeric_dtype(report["label_quality"])
    if not whole or not numbers or not report["label_quality"].between(0, 1).all():
        raise UserError(f"{path} must have whole numbers as labels and a label_quality in 0..1")
    return report


def _with_by_eye(report: pd.DataFrame) -> pd.DataFrame:
    """Return the report with the column `by_eye`, which older ones lack."""
    if list(report.columns) != REPORT_COLUMNS[:-1]:
        return report
    return report.assign(by_eye=False)


def read_decisions(paths: Sequence[Path]) -> pd.DataFrame:
    """Read decisions made by eye (`image_id,decision,label`); of several files the last one decides."""
    return pd.concat(map(_read_decisions, paths)).drop_duplicates("image_id", keep="last").reset_index(drop=True)


def _read_decisions(path: Path) -> pd.DataFrame:
    """Read one file of decisions, each keep, drop or relabel."""
    find_file(path, "decisions", "export them from the review page")
    table = read_image_rows(path)
    if list(table.columns) != ["image_id", "decision", "label"]:
        raise UserError(f"{path} must have the columns image_id,decision,label, got {','.join(table.columns)}")
    if table["image_id"].duplicated().any():
        raise UserError(f"{path} decides {table['image_id'][table['image_id'].duplicated()].iloc[0]} more than once")
    unknown = table["decision"][~table["decision"].isin(VERDICTS)]
    if len(unknown):
        raise UserError(f"{path}: decision must be one of {', '.join(VERDICTS)}, got {unknown.iloc[0]!r}")
    if not pd.api.types.is_integer_dtype(table["label"]):
        raise UserError(f"{path} must have a whole number as label in every row (the given one, or the new one)")
    return table


def check_decisions(decisions: pd.DataFrame, image_ids: np.ndarray, n_classes: int) -> None:
    """Raise UserError for a decision on an image outside the fold file, or for a label outside 0..K-1."""
    unknown = decisions["image_id"][~decisions["image_id"].isin(image_ids)]
    if len(unknown):
        raise UserError(f"the decisions name {unknown.iloc[0]}, which is not in the fold file")
    outside = decisions[~decisions["label"].between(0, n_classes - 1)]
    if len(outside):
        name, label = outside[["image_id", "label"]].iloc[0]
        raise UserError(f"the decisions give {name} label {label}, not 0..{n_classes - 1}")


def check_noise_report(report: pd.DataFrame, table: pd.DataFrame, n_classes: int) -> None:
    """Raise UserError unless the report has exactly the images and labels of the table, and suggests its K classes."""
    outside = report[~report["suggested_label"].between(0, n_classes - 1)]
    if len(outside):
        name, label = outside[["image_id", "suggested_label"]].iloc[0]
        raise UserError(f"the noise report suggests label {label} for {name}, not 0..{n_classes - 1}; make it again")
    unknown = pd.Index(report["image_id"]).difference(table["image_id"])
    if len(unknown):
        raise UserError(
            f"the noise report names {len(unknown)} images that the table does not have (first: {unknown[0]}); "
            "make it for this table with: python -m cassava_kit clean"
        )
    _check_labels(table, report)


def _check_labels(rows: pd.DataFrame, report: pd.DataFrame) -> pd.DataFrame:
    """Return the report's row of each row, in their order; UserError where it has none or another given label."""
    said = report.set_index("image_id").reindex(rows["image_id"])
    if said["label"].isna().any():
        raise UserError(
            f"the noise report has no row for {said.index[said['label'].isna()][0]}; make it for this table with: "
            "python -m cassava_kit clean"
        )
    differs = said["label"].to_numpy() != rows["label"].to_numpy()
    if differs.any():
        raise UserError(
            f"the noise report was made for other labels: {rows['image_id'].to_numpy()[differs][0]} is "
            f"{rows['label'].to_numpy()[differs][0]} here and {int(said['label'].to_numpy()[differs][0])} in the "
            "report; make it again with: python -m cassava_kit clean"
        )
    return said


def apply_noise_report(rows: pd.DataFrame, report: pd.DataFrame, *, action: str = "drop") -> pd.DataFrame:
    """Return the training rows `image_id,label` after the report, with a column `weight` (1 by default).

    What was decided by eye applies whatever the action: a dropped row leaves, a relabelled one has its new label. Of
    the other rows `drop` leaves out those that are not kept, `flip` gives them the suggested label, `weight` counts
    them by their label quality q. `soften` knows no cap: every suspicious row comes twice, as the given label with
    weight q and as the suggested one with 1 - q, which is the loss of a soft label. The order is kept, second labels
    come last. Validation rows never come here.

    Raises:
        UserError: where the action is unknown, or the report's labels are not the rows' own.
    """
    if action not in ACTIONS:
        raise UserError(f"action must be one of {', '.join(ACTIONS)}, got {action!r}")
    said = _check_labels(rows, _with_by_eye(report))
    by_eye, out = said["by_eye"].to_numpy(bool), ~said["keep"].to_numpy(bool)
    given, suggested = rows["label"].to_numpy(), said["suggested_label"].to_numpy(np.int64)
    quality = said["label_quality"].to_numpy()
    relabelled, estimated = by_eye & ~out, out & ~by_eye & (suggested != given)
    leaves = out & ((action == "drop") | ~estimated)
    label, weight = np.where(relabelled, suggested, given), np.ones(len(rows))
    second = np.zeros(len(rows), bool)
    if action == "flip":
        label = np.where(estimated, suggested, label)
    elif action == "weight":
        weight = np.where(estimated, quality, weight)
    elif action == "soften":
        second = ~by_eye & (suggested != given)
        weight = np.where(second, quality, weight)
    first = rows.assign(label=label, weight=weight)[~leaves]
    both = pd.concat([first, rows.assign(label=suggested, weight=1 - quality)[second]])
    return both[(both["weight"] > 0) | (action != "soften")].reset_index(drop=True)


def class_table(report: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return rows, flagged, removed and their shares, by class of the given label."""
    flagged = report["suggested_label"] != report["label"]
    groups = report.assign(flagged=flagged, removed=~report["keep"]).groupby("label")
    table = groups.agg(rows=("keep", "size"), flagged=("flagged", "sum"), removed=("removed", "sum"))
    table = table.reindex(range(len(classes)), fill_value=0)
    table.insert(0, "class", list(classes))
    return table.assign(flagged_share=(table["flagged"] / table["rows"].clip(lower=1)).round(4))


def estimate_noise_matrix(report: pd.DataFrame, n_classes: int) -> np.ndarray:
    """Estimate P(given label j | true label k) at [j, k], from the suggestions; columns sum to 1."""
    pairs = report["label"].to_numpy() * n_classes + report["suggested_label"].to_numpy()
    joint = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes).astype(float)
    unseen = joint.sum(axis=0) == 0
    joint[unseen, unseen] = 1
    return joint / joint.sum(axis=0)
