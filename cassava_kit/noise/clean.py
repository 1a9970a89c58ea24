"""The verb `clean`: out-of-fold files in, noise report and its header out, and a plain account of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cassava_kit.competition import CASSAVA, Competition
from cassava_kit.files import write_json
from cassava_kit.folds import read_folds
from cassava_kit.noise.decisions import (
    Caps,
    class_table,
    estimated_noise,
    noise_report,
    read_decisions,
    write_report,
)
from cassava_kit.noise.detect import Detection, find_errors
from cassava_kit.oof import Evidence, gather_files


@dataclass(frozen=True)
class Cleaning:
    """A noise report, what it was found from, and the caps that held it back."""

    report: pd.DataFrame
    detection: Detection
    evidence: Evidence
    caps: Caps
    classes: tuple[str, ...]

    def __str__(self) -> str:
        removed = int((~self.report["keep"]).sum())
        matrix = pd.DataFrame(estimated_noise(self.report, len(self.classes))).map("{:.3f}".format)
        return "\n".join(
            [
                f"evidence: {', '.join(self.evidence.names)} on {len(self.report):,} rows, given labels",
                str(self.detection),
                f"{removed:,} rows are removed from training (cap {self.caps.overall:.0%} of all, "
                f"{self.caps.per_class:.0%} of a class); validation keeps every row and its given label",
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
    competition: Competition = CASSAVA,
) -> Cleaning:
    """Find wrong labels in out-of-fold evidence and decide what training leaves out; embedding (N, D) in its order."""
    caps = caps or Caps()
    detection = find_errors(evidence.labels, evidence.pred_probs, fold=evidence.fold, embedding=embedding)
    report = noise_report(evidence.image_ids, evidence.labels, detection, caps=caps, decisions=decisions)
    names = competition.classes
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
    decisions: Path | None = None,
) -> Cleaning:
    """`clean` on files: writes the report `out` and beside it a header naming the fold file's hash."""
    caps = caps or Caps()
    decided = read_decisions(decisions) if decisions is not None else None
    evidence = gather_files(oof, read_folds(folds))
    vectors = read_embedding(embedding, evidence.image_ids) if embedding is not None else None
    cleaning = clean(evidence, caps=caps, embedding=vectors, decisions=decided)
    write_report(out, cleaning.report)
    detection = cleaning.detection
    header = {
        "kind": "noise-report",
        "fold_hash": evidence.fold_hash,
        "members": list(evidence.names),
        "embedding": embedding is not None,
        "labels": "given",
        "flagged": int(detection.flags.sum()),
        "removed": int((~cleaning.report["keep"]).sum()),
        "cap": caps.overall,
        "class_cap": caps.per_class,
        "disagreement": detection.disagreement,
        "ratio": detection.ratio,
        "noise_matrix": estimated_noise(cleaning.report, len(cleaning.classes)).round(6).tolist(),
    }
    write_json(Path(out).with_suffix(".json"), header)
    return cleaning


def write_embedding(path: Path, image_ids: np.ndarray, vectors: np.ndarray) -> None:
    """Write an embedding (N, D) of images as .npz: `image_id` (N,) and `embedding` (N, D), atomically."""
    from cassava_kit.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, image_id=np.asarray(image_ids).astype(str), embedding=np.asarray(vectors, np.float32))


def read_embedding(path: Path, image_ids: np.ndarray) -> np.ndarray:
    """The embedding (N, D) of these images from an .npz file with `image_id` and `embedding`, joined by id."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no embedding {path}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            ids, vectors = stored["image_id"].astype(str), stored["embedding"]
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} must be an .npz file with the arrays image_id and embedding ({error})") from None
    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise ValueError(f"{path} must hold one vector an image, got {len(ids)} ids and shape {vectors.shape}")
    at = pd.Series(np.arange(len(ids)), index=ids)
    if at.index.has_duplicates:
        raise ValueError(f"{path} names {at.index[at.index.duplicated()][0]} more than once")
    rows = at.reindex(np.asarray(image_ids).astype(str))
    if rows.isna().any():
        raise ValueError(f"{path} has no vector for {rows.index[rows.isna()][0]}; embed every training image")
    return vectors[rows.to_numpy(int)]
