"""Noise report from members' out-of-fold files; entry point `clean_files` (the verb `clean`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cassava_kit.competition import current
from cassava_kit.evidence.noise.decisions import (
    Caps,
    class_table,
    estimated_noise,
    noise_report,
)
from cassava_kit.evidence.noise.detect import LabelErrors, find_label_errors
from cassava_kit.evidence.noise.neighbours import neighbour_agreement
from cassava_kit.evidence.oof import Evidence

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
        """Return the file beside the report: split, members, counts, caps, counts by class, noise matrix."""
        errors = self.errors
        by_class = class_table(self.report, self.classes)
        return {
            "kind": "noise-report",
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
            "removed": int((~self.report["keep"]).sum()),
            "by_eye": int(self.report["by_eye"].sum()),
            "cap": self.caps.overall,
            "class_cap": self.caps.per_class,
            "classes": [
                {"class": name, "rows": int(rows), "flagged": int(flagged), "removed": int(removed)}
                for name, rows, flagged, removed in by_class[["class", "rows", "flagged", "removed"]].itertuples(
                    index=False
                )
            ],
            "noise_matrix": estimated_noise(self.report, len(self.classes)).round(6).tolist(),
        }

    def __str__(self) -> str:
        removed, looked = int((~self.report["keep"]).sum()), int(self.report["by_eye"].sum())
        matrix = pd.DataFrame(estimated_noise(self.report, len(self.classes))).map("{:.3f}".format)
        lines = [f"evidence: {', '.join(self.evidence.names)} on {len(self.report):,} rows, given labels"]
        if self.embedding:
            lines.append(f"neighbours in {self.embedding}: a column to sort the review page by, they flag nothing")
        lines += [
            str(self.errors),
            f"{removed:,} rows are not kept, which train --clean-action drop leaves out (cap {self.caps.overall:.0%} of "
            f"all, {self.caps.per_class:.0%} of a class);",
        ]
        if looked:
            lines.append(f"{looked:,} rows were decided by eye, which train follows whatever its --clean-action;")
        return "\n".join(
            [
                *lines,
                "validation keeps every row and its given label",
                f"note: {LABELS_SEEN}",
                "",
                class_table(self.report, self.classes).to_string(),
                "",
                "estimated share of given label (row) where the true label is (column):",
                matrix.to_string(),
            ]
        )


def clean(
    evidence: Evidence,
    *,
    caps: Caps | None = None,
    embedding: np.ndarray | None = None,
    decisions: pd.DataFrame | None = None,
) -> Cleaning:
    """Find wrong labels in out-of-fold evidence and decide what training leaves out; embedding (N, D) in its order."""
    caps = caps or Caps()
    errors = find_label_errors(evidence.labels, evidence.pred_probs)
    agreement = None if embedding is None else neighbour_agreement(embedding, evidence.labels)
    report = noise_report(evidence.image_ids, errors, caps=caps, decisions=decisions, agreement=agreement)
    names = evidence.task.classes if evidence.task else current().classes
    k = evidence.pred_probs.shape[2]
    classes = names if len(names) == k else tuple(f"class {i}" for i in range(k))
    return Cleaning(report, errors, evidence, caps, classes)
