"""Noise reports from out-of-fold evidence; entry points `clean_labels` and, for plain arrays, `find_label_errors`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cassava_kit.competition import current, labels_are_numbers
from cassava_kit.errors import UserError
from cassava_kit.evidence.noise.decisions import (
    HARD_CAP,
    Caps,
    class_table,
    estimate_noise_matrix,
    make_noise_report,
)
from cassava_kit.evidence.noise.detect import LabelErrors, detect_errors
from cassava_kit.evidence.noise.neighbours import neighbour_agreement
from cassava_kit.evidence.oof import Evidence

# Share of wrong labels that the warning about weak members assumes: about Cassava's.
ASSUMED_NOISE = 0.10

LABELS_SEEN = (
    "each row is judged by models that learnt the labels of every other fold: a run that is trained with this report "
    "has indirectly seen labels of the fold it is scored on, and its out-of-fold score is a little too good"
)


@dataclass(frozen=True)
class Cleaning:
    """A noise report, what it was found from, and the caps that held it back."""

    report: pd.DataFrame
    errors: LabelErrors
    evidence: Evidence
    caps: Caps
    classes: tuple[str, ...]
    embedding: str | None = None

    def header(self) -> dict[str, Any]:
        """Return the file beside the report: split, members, counts, caps, counts by class, noise matrix.

        The fields of `Task` come with them where the files name it.
        """
        errors = self.errors
        by_class = class_table(self.report, self.classes)
        return {
            "kind": "noise-report",
            **(self.evidence.task.header() if self.evidence.task else {}),
            "fold_hash": self.evidence.fold_hash,
            "members": list(self.evidence.names),
            "embedding": self.embedding,
            "labels": "given",
            "labels_seen": LABELS_SEEN,
            "rows": len(self.report),
            "flagged": int(errors.flags.sum()),
            "plain_disagreement": errors.disagreeing,
            "never_predicted": [self.classes[k] for k in errors.never_predicted],
            "flags_taken_back": errors.held_back,
            "warning": describe_weakness(errors) or None,
            "removed": int((~self.report["keep"]).sum()),
            "by_eye": int(self.report["by_eye"].sum()),
            "cap": self.caps.overall,
            "class_cap": self.caps.per_class,
            "by_class": [
                {"class": name, "rows": int(rows), "flagged": int(flagged), "removed": int(removed)}
                for name, rows, flagged, removed in by_class[["class", "rows", "flagged", "removed"]].itertuples(
                    index=False
                )
            ],
            "noise_matrix": estimate_noise_matrix(self.report, len(self.classes)).round(6).tolist(),
        }

    def __str__(self) -> str:
        removed, looked = int((~self.report["keep"]).sum()), int(self.report["by_eye"].sum())
        numbered = labels_are_numbers(self.evidence.task)
        names = range(len(self.classes)) if numbered else self.classes
        matrix = pd.DataFrame(estimate_noise_matrix(self.report, len(self.classes)), names, names).map("{:.3f}".format)
        lines = [f"evidence: {', '.join(self.evidence.names)} on {len(self.report):,} rows, given labels"]
        if self.embedding:
            lines.append(f"neighbours in {self.embedding}: a column to sort the review page by, they flag nothing")
        lines += [
            self.errors.describe(self.classes),
            f"{removed:,} rows are not kept, which train --clean-action drop leaves out "
            f"(cap {self.caps.overall:.0%} of all, {self.caps.per_class:.0%} of a class);",
        ]
        if looked:
            lines.append(f"{looked:,} rows were decided by eye, which train follows whatever its --clean-action;")
        warning = describe_weakness(self.errors)
        return "\n".join(
            [
                *lines,
                *([f"warning: {warning}"] if warning else []),
                "validation keeps every row and its given label",
                f"note: {LABELS_SEEN}",
                "",
                class_table(self.report, self.classes).to_string(index=numbered),
                "",
                "estimated share of given label (row) where the true label is (column):",
                matrix.to_string(),
            ]
        )


def describe_weakness(errors: LabelErrors) -> str:
    """Return a warning where most disagreements must be the members' own errors; empty elsewhere.

    With a share d of disagreements and a share e of wrong labels, at least 1 - e / d of the disagreements are theirs.
    """
    disagreeing = errors.disagreeing / len(errors.labels)
    if disagreeing <= 2 * ASSUMED_NOISE:
        return ""
    own = 1 - ASSUMED_NOISE / disagreeing
    return (
        f"the members disagree with {disagreeing:.1%} of the given labels: if {ASSUMED_NOISE:.0%} of the labels are "
        f"wrong, at least {own:.0%} of the disagreements are the members' own errors; look at the images with the verb "
        "review, and train on all rows"
    )


def clean_labels(
    evidence: Evidence,
    *,
    caps: Caps | None = None,
    embedding: np.ndarray | None = None,
    decisions: pd.DataFrame | None = None,
) -> Cleaning:
    """Find wrong labels in out-of-fold evidence and decide what training leaves out; embedding (N, D) in its order."""
    caps = caps or Caps()
    errors = detect_errors(evidence.labels, evidence.pred_probs)
    agreement = None if embedding is None else neighbour_agreement(embedding, evidence.labels)
    report = make_noise_report(evidence.image_ids, errors, caps=caps, decisions=decisions, agreement=agreement)
    names = evidence.task.classes if evidence.task else current().classes
    k = evidence.pred_probs.shape[2]
    classes = names if len(names) == k else tuple(f"class {i}" for i in range(k))
    return Cleaning(report, errors, evidence, caps, classes)


def find_label_errors(
    labels: ArrayLike,
    pred_probs: ArrayLike,
    *,
    image_ids: ArrayLike | None = None,
    max_share: float = 0.03,
    embedding: ArrayLike | None = None,
) -> pd.DataFrame:
    """Find labels that are probably wrong, by cleanlab on out-of-fold probabilities.

    Args:
        labels: given labels (N,), whole numbers 0..K-1.
        pred_probs: out-of-fold probabilities of one model (N, K) or of several (M, N, K), whose mean counts.
        image_ids: names (N,); row numbers by default.
        max_share: largest share of all rows whose `keep` is False (at most .1), and a tenth of each class.
        embedding: vectors (N, D) of the images; their neighbours' agreement becomes one more column.

    Returns:
        One row a label in the given order: `image_id`, `label`, `suggested_label` (the most probable class where the
        label is flagged, else the label), `label_quality` (normalized margin, 0 the worst to 1), `keep` (False where
        training should leave the row out), `flagged`. Rows of a class that is never predicted are not flagged.

    Raises:
        UserError: where labels, probabilities, names or vectors are not of the same rows.

    Example:
        >>> labels = [0, 0, 0, 0, 1, 1, 1, 1]
        >>> probs = [[.9, .1], [.8, .2], [.9, .1], [.1, .9], [.2, .8], [.1, .9], [.3, .7], [.1, .9]]
        >>> errors = find_label_errors(labels, probs)
        >>> errors[errors["flagged"]][["image_id", "label", "suggested_label"]].to_numpy().tolist()
        [['3', 0, 1]]
    """
    if not 0 <= max_share <= HARD_CAP:
        raise UserError(f"max_share must be a share in 0..{HARD_CAP}, got {max_share}")
    errors = detect_errors(labels, pred_probs)
    names = np.arange(len(errors.labels)) if image_ids is None else np.asarray(image_ids)
    names = names.astype(str)
    if len(names) != len(errors.labels) or len(np.unique(names)) != len(names):
        raise UserError(
            f"image_ids must be {len(errors.labels)} different names, one for each label, got {len(names)} "
            f"({len(np.unique(names))} different)"
        )
    agreement = None
    if embedding is not None:
        vectors = np.asarray(embedding)
        if len(vectors) != len(names):
            raise UserError(f"embedding must have one vector for each of {len(names)} labels, got {len(vectors)}")
        agreement = neighbour_agreement(vectors, errors.labels)
    report = make_noise_report(names, errors, caps=Caps(max_share), agreement=agreement)
    flagged = pd.Series(errors.flags, index=names)[report["image_id"]].to_numpy()
    return report.drop(columns="by_eye").assign(flagged=flagged).set_index("image_id").loc[names].reset_index()
