"""The verb `clean`: out-of-fold files in, noise report and its header out, and a plain account of both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition, current
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
from cassava_kit.noise.detect import Detection, find_errors
from cassava_kit.noise.embedding import backbone_embedding, read_embedding
from cassava_kit.oof import Evidence, gather_files
from cassava_kit.paths import cache_dir


@dataclass(frozen=True)
class Cleaning:
    """A noise report, what it was found from, and the caps that held it back."""

    report: pd.DataFrame
    detection: Detection
    evidence: Evidence
    caps: Caps
    classes: tuple[str, ...]
    embedding: str | None = None

    def header(self) -> dict[str, Any]:
        """What the file beside the report says: split, members, counts, caps, counts by class, noise matrix."""
        detection = self.detection
        by_class = class_table(self.report, self.classes)
        return {
            "kind": "noise-report",
            "fold_hash": self.evidence.fold_hash,
            "members": list(self.evidence.names),
            "embedding": self.embedding,
            "labels": "given",
            "rows": len(self.report),
            "flagged": int(detection.flags.sum()),
            "confident_learning": detection.confident,
            "plain_disagreement": detection.disagreeing,
            "removed": int((~self.report["keep"]).sum()),
            "cap": self.caps.overall,
            "class_cap": self.caps.per_class,
            "disagreement": detection.disagreement,
            "ratio": detection.ratio,
            "classes": [
                {"class": name, "rows": int(rows), "flagged": int(flagged), "removed": int(removed)}
                for name, rows, flagged, removed in by_class[["class", "rows", "flagged", "removed"]].itertuples(
                    index=False
                )
            ],
            "noise_matrix": estimated_noise(self.report, len(self.classes)).round(6).tolist(),
        }

    def __str__(self) -> str:
        removed = int((~self.report["keep"]).sum())
        matrix = pd.DataFrame(estimated_noise(self.report, len(self.classes))).map("{:.3f}".format)
        n = len(self.report)
        return "\n".join(
            [
                f"evidence: {', '.join(self.evidence.names)} on {n:,} rows, given labels"
                f"{f'; neighbours in {self.embedding}' if self.embedding else ''}",
                f"the members' mean alone: confident learning flags {self.detection.confident:,} "
                f"({self.detection.confident / n:.1%}), its most probable class is another one for "
                f"{self.detection.disagreeing:,} ({self.detection.disagreeing / n:.1%})",
                str(self.detection),
                f"{removed:,} rows are not kept, which train --clean-action drop leaves out (cap "
                f"{self.caps.overall:.0%} of all, {self.caps.per_class:.0%} of a class);",
                "validation keeps every row and its given label",
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
    detection = find_errors(evidence.labels, evidence.pred_probs, fold=evidence.fold, embedding=embedding)
    report = noise_report(evidence.image_ids, evidence.labels, detection, caps=caps, decisions=decisions)
    names = current().classes
    k = evidence.pred_probs.shape[2]
    classes = names if len(names) == k else tuple(f"class {i}" for i in range(k))
    return Cleaning(report, detection, evidence, caps, classes)


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
    """ValueError where the report, or its header, would be written over one of its own inputs."""
    taken = {path.resolve() for given in (folds, *inputs) for path in (given, given.with_suffix(".json"))}
    for path in (out, header_path(out)):
        if path.resolve() in taken:
            raise ValueError(f"the report would be written over {path}, which it is made from; give --out another name")


def check_source(embedding: Path | None, backbone: Path | None) -> None:
    """ValueError where neighbours are asked of a file and of a checkpoint."""
    if embedding is not None and backbone is not None:
        raise ValueError("give --embedding FILE or --backbone CHECKPOINT, not both")


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
