"""Noise report from members' out-of-fold files; entry point `clean_files` (the verb `clean`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition, current
from cassava_kit.errors import UserError
from cassava_kit.files import header_path, write_json
from cassava_kit.folds import read_folds
from cassava_kit.noise.decisions import (
    Caps,
    check_decisions,
    class_table,
    estimated_noise,
    noise_report,
    read_decisions,
    write_report,
)
from cassava_kit.noise.detect import LabelErrors, find_label_errors
from cassava_kit.noise.embedding import backbone_embedding, read_embedding
from cassava_kit.noise.neighbours import neighbour_agreement
from cassava_kit.oof import Evidence, gather_files
from cassava_kit.paths import cache_dir

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


def clean_files(
    oof: Sequence[Path],
    folds: Path,
    out: Path,
    *,
    caps: Caps | None = None,
    embedding: Path | None = None,
    backbone: tuple[Path, Path] | None = None,
    decisions: Sequence[Path] = (),
) -> Cleaning:
    """`clean` on files: writes the report `out` and beside it a header naming the fold file's hash.

    Neighbours come from a file `embedding`, or from `backbone`: a checkpoint and the competition folder it looks at.
    Of several files of `decisions` a later one decides again what an earlier one did.
    """
    check_out(out, folds, [*oof, *decisions, *filter(None, [embedding])])
    check_source(embedding, backbone and backbone[0])
    decided = read_decisions(decisions) if decisions else None
    evidence = gather_files(oof, read_folds(folds))
    if decided is not None:
        check_decisions(decided, evidence.image_ids, evidence.pred_probs.shape[2])
    vectors, source = embedding_of(evidence.image_ids, embedding, backbone)
    found = clean(evidence, caps=caps, embedding=vectors, decisions=decided)
    cleaning = replace(found, embedding=source)
    write_report(out, cleaning.report)
    given = {"folds": [folds], "oof": oof, "embedding": [embedding] if embedding else [], "decisions": decisions}
    files = {kind: [os.path.relpath(path, Path(out).parent) for path in paths] for kind, paths in given.items()}
    write_json(header_path(out), {**cleaning.header(), "files": files})
    return cleaning


def check_out(out: Path, folds: Path, inputs: Sequence[Path]) -> None:
    """UserError where the report, or its header, would be written over one of its own inputs."""
    taken = {path.resolve() for given in (folds, *inputs) for path in (given, given.with_suffix(".json"))}
    for path in (out, header_path(out)):
        if path.resolve() in taken:
            raise UserError(f"the report would be written over {path}, which it is made from; give --out another name")


def check_source(embedding: Path | None, backbone: Path | None, competition: Competition | None = None) -> None:
    """Refuse what neighbours cannot come from, before slow work.

    Raises:
        UserError: both a file and a checkpoint are given, or the checkpoint has learnt labels of this competition: its
            features repeat the labels that they are asked about.
        FileNotFoundError: no checkpoint.
    """
    from cassava_kit.checkpoint import read_info
    from cassava_kit.training.start import labels_learnt

    if backbone is None:
        return
    if embedding is not None:
        raise UserError("give --embedding FILE or --backbone CHECKPOINT, not both")
    read_info(backbone)
    info = labels_learnt(backbone)
    if info is not None and info.competition in (None, (competition or current()).slug):
        raise UserError(
            f"--backbone {backbone} has learnt labels of these images ({info.name}), so that its features repeat their "
            "errors; give a backbone of pretrain, or --embedding FILE"
        )


def embedding_of(
    image_ids: np.ndarray,
    embedding: Path | None,
    backbone: tuple[Path, Path] | None,
    competition: Competition | None = None,
) -> tuple[np.ndarray | None, str | None]:
    """Vectors (N, D) of images from a file or a checkpoint, and what they are called; none where neither is given."""
    competition = competition or current()
    if embedding is not None:
        return read_embedding(embedding, image_ids), embedding.name
    if backbone is None:
        return None, None
    checkpoint, data = backbone
    folder = data / competition.train_images
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; --data must be the competition folder")
    vectors = backbone_embedding(checkpoint, [folder / name for name in image_ids], cache=cache_dir() / "features")
    return vectors, checkpoint.name
