"""The label review: suspicious photographs on one self-contained page, decisions out as CSV for `clean --decisions`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cassava_kit.competition import CASSAVA, Competition
from cassava_kit.data.images import ImageError, decode_small, in_threads, read_bytes
from cassava_kit.files import sha256_bytes, write_text
from cassava_kit.noise.clean import read_embedding
from cassava_kit.noise.decisions import read_report
from cassava_kit.noise.neighbours import nearest
from cassava_kit.oof import Evidence

LIMIT = 2000
PHOTO, NEIGHBOUR = 280, 84  # longer side of thumbnails, pixels
N_NEAR = 4


@dataclass(frozen=True)
class Extras:
    """What the page shows beside labels and quality; each may be missing.

    `evidence` members' out-of-fold probabilities (their votes); `near` image id -> its nearest images' ids; `groups`
    image id -> group of near-duplicates.
    """

    evidence: Evidence | None = None
    near: dict[str, list[str]] | None = None
    groups: dict[str, int] | None = None


def review_rows(report: pd.DataFrame, extras: Extras | None = None, *, limit: int = LIMIT) -> list[dict[str, Any]]:
    """What the page shows of each row: near-duplicates whose labels differ, then suspicious rows, worst first."""
    extras = extras or Extras()
    label_of = dict(zip(report["image_id"], report["label"].tolist(), strict=True))
    conflicts = conflicting(label_of, extras.groups or {})
    suspicious = (report["suggested_label"] != report["label"]) | ~report["keep"]
    in_conflict = report["image_id"].isin(conflicts)
    chosen = report.assign(first=~in_conflict)[suspicious | in_conflict].sort_values("first", kind="stable")
    votes = member_votes(extras.evidence)
    return [
        {
            "id": row["image_id"],
            "label": int(row["label"]),
            "suggested": int(row["suggested_label"]),
            "quality": float(row["label_quality"]),
            "keep": bool(row["keep"]),
            "votes": votes.get(row["image_id"], []),
            "conflicts": [{"id": name, "label": label_of[name]} for name in conflicts.get(row["image_id"], [])],
            "near": [{"id": n, "label": label_of[n]} for n in (extras.near or {}).get(row["image_id"], [])[:N_NEAR]],
        }
        for row in chosen.head(limit).to_dict("records")
    ]


def conflicting(label_of: dict[str, int], groups: dict[str, int]) -> dict[str, list[str]]:
    """For each image whose near-duplicates carry another label: those duplicates."""
    members: dict[int, list[str]] = {}
    for name, group in groups.items():
        if name in label_of:
            members.setdefault(group, []).append(name)
    return {
        name: others
        for names in members.values()
        for name in names
        if (others := [other for other in names if label_of[other] != label_of[name]])
    }


def member_votes(evidence: Evidence | None) -> dict[str, list[dict[str, Any]]]:
    """Each member's most probable class, its probability and the given label's, by image id."""
    if evidence is None:
        return {}
    n = np.arange(len(evidence.labels))
    top = evidence.pred_probs.argmax(axis=2)
    return {
        image_id: [
            {
                "name": name,
                "label": int(top[m, i]),
                "p": float(p[i, top[m, i]]),
                "given": float(p[i, evidence.labels[i]]),
            }
            for m, (name, p) in enumerate(zip(evidence.names, evidence.pred_probs, strict=True))
        ]
        for i, image_id in zip(n, evidence.image_ids, strict=True)
    }


def nearest_ids(image_ids: np.ndarray, embedding: np.ndarray) -> dict[str, list[str]]:
    """Ids of each image's nearest images in an embedding (N, D)."""
    return dict(zip(image_ids, image_ids[nearest(embedding, reach=N_NEAR)].tolist(), strict=True))


def thumbnail(path: Path, side: int) -> str:
    """A JPEG whose longer side is `side` pixels, as base64; empty where the file is not a whole image."""
    import cv2

    try:
        image = decode_small(read_bytes(path), side)
    except ImageError:
        return ""
    scale = side / max(image.shape[:2])
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    _, content = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return base64.b64encode(content.tobytes()).decode("ascii")


def thumbnails(rows: Sequence[dict[str, Any]], image_dir: Path, *, progress: bool = True) -> dict[str, str]:
    """Thumbnails of all images the rows name: photographs larger, those that are only neighbours smaller."""
    sides = {other["id"]: NEIGHBOUR for row in rows for other in row["near"]} | {row["id"]: PHOTO for row in rows}
    made = in_threads(
        lambda item: thumbnail(image_dir / item[0], item[1]), list(sides.items()), title="Thumbnails", progress=progress
    )
    return dict(zip(sides, made, strict=True))


def review_page(rows: Sequence[dict[str, Any]], thumbs: dict[str, str], *, classes: Sequence[str], key: str) -> str:
    """The page's HTML; `key` names the report, so that the browser keeps its decisions apart from another's."""
    data = {"key": key, "classes": list(classes), "rows": list(rows), "thumbnails": thumbs}
    # Within a script element only "<" could end it, whatever a file is called.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = files("cassava_kit.report").joinpath("review.html").read_text(encoding="utf-8")
    return template.replace("__DATA__", text)


def write_review(
    clean: Path,
    data: Path,
    out: Path,
    *,
    extras: Extras | None = None,
    limit: int = LIMIT,
    competition: Competition = CASSAVA,
) -> str:
    """Write the review page of a noise report over a competition folder's images; returns what to tell the user."""
    report = read_report(clean)
    image_dir = Path(data) / competition.train_images
    if not image_dir.is_dir():
        raise FileNotFoundError(f"no folder {image_dir}; --data must be the competition folder")
    missing = [name for name in report["image_id"] if not (image_dir / name).is_file()]
    if len(missing) == len(report):
        raise FileNotFoundError(f"{image_dir} has none of the images {clean} names (first: {missing[0]})")
    rows = review_rows(report, extras, limit=limit)
    if not rows:
        return f"{clean} has no suspicious row: there is nothing to review"
    classes = competition.classes
    labels = {row["label"] for row in rows} | {row["suggested"] for row in rows}
    names = list(classes) + [f"class {k}" for k in range(len(classes), max(labels) + 1)]
    key = sha256_bytes(Path(clean).read_bytes())[:16]
    page = review_page(rows, thumbnails(rows, image_dir), classes=names, key=key)
    write_text(out, page)
    return f"{out}: {len(rows):,} photographs to look at, {len(page) / 1e6:.1f} MB; open it in a browser"


def review_files(
    clean: Path,
    data: Path,
    out: Path,
    *,
    oof: Sequence[Path] = (),
    folds: Path | None = None,
    embedding: Path | None = None,
    duplicates: bool = False,
    limit: int = LIMIT,
) -> str:
    """The verb `review`: the page with members' votes, neighbours and near-duplicates, as far as files are given."""
    from cassava_kit.data.duplicates import find_duplicates
    from cassava_kit.folds import read_folds
    from cassava_kit.oof import gather_files

    if oof and folds is None:
        raise ValueError("--oof needs --folds FILE: members' votes are checked against the split")
    report = read_report(clean)
    ids = report["image_id"].to_numpy()
    evidence = gather_files(oof, read_folds(folds)) if oof and folds is not None else None
    near = nearest_ids(ids, read_embedding(embedding, ids)) if embedding is not None else None
    groups = None
    if duplicates:
        paths = [Path(data) / CASSAVA.train_images / name for name in ids]
        groups = dict(zip(ids, find_duplicates(paths).tolist(), strict=True))
    return write_review(clean, data, out, extras=Extras(evidence, near, groups), limit=limit)
