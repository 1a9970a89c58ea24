"""The page on which a person decides about suspicious labels, as CSV for `clean --decisions`; `review_files`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition, Task, known_competition, labels_are_numbers, read_task
from cassava_kit.data.folds import read_folds
from cassava_kit.data.images import in_threads
from cassava_kit.errors import UserError
from cassava_kit.evidence.noise.decisions import AGREEMENT, read_noise_report
from cassava_kit.evidence.noise.neighbours import nearest
from cassava_kit.evidence.oof import Evidence, read_evidence
from cassava_kit.files import cache_dir, find_folder, header_path, path_inside, read_object, sha256_bytes, write_text
from cassava_kit.inference.features import check_embedding_source, embed_images
from cassava_kit.report.page import ClassNames, check_out, environment, name_classes
from cassava_kit.report.thumbnails import NEIGHBOUR, photo_side, thumbnail

LIMIT = 2000


N_NEAR = 4


@dataclass(frozen=True)
class Extras:
    """What the page can show beside labels and quality.

    `evidence` members' out-of-fold probabilities (their votes); `near` image id -> its nearest images' ids; `groups`
    image id -> group of near-duplicates.
    """

    evidence: Evidence | None = None
    near: dict[str, list[str]] | None = None
    groups: dict[str, int] | None = None


@dataclass(frozen=True)
class ReviewFiles:
    """Files that a page is made from: out-of-fold files and their fold file, an embedding or a checkpoint."""

    oof: tuple[Path, ...] = ()
    folds: Path | None = None
    embedding: Path | None = None
    backbone: Path | None = None

    def or_those_of(self, clean: Path) -> ReviewFiles:
        """Return these files; in place of missing ones, those that the report's header names and that exist."""
        named = report_header(clean).get("files", {})
        found = {
            kind: [path for name in names if (path := clean.parent / name).is_file()] for kind, names in named.items()
        }
        oof, folds = self.oof, self.folds
        if not oof and found.get("oof") and found.get("folds"):
            oof, folds = tuple(found["oof"]), folds or found["folds"][0]
        embedding = self.embedding
        if embedding is None and self.backbone is None and found.get("embedding"):
            embedding = found["embedding"][0]
        return ReviewFiles(oof, folds, embedding, self.backbone)

    def evidence(self) -> Evidence | None:
        """Return the members' predictions, joined and checked against the split; None without members."""
        if not self.oof:
            return None
        if self.folds is None:
            raise UserError("--oof needs --folds FILE: members' votes are checked against the split")
        return read_evidence(self.oof, read_folds(self.folds))


def review_rows(report: pd.DataFrame, extras: Extras | None = None, *, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Return what the page shows of each row: near-duplicates with other labels, then suspicious rows, worst first.

    The nearest images leave out near-duplicates: those with another label are shown as such, the others counted.
    """
    extras = extras or Extras()
    groups, near = extras.groups or {}, extras.near or {}
    label_of = dict(zip(report["image_id"], report["label"].tolist(), strict=True))
    conflicts = find_conflicts(label_of, groups)
    sizes = Counter(groups[name] for name in label_of if name in groups)
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
            "agreement": float(row[AGREEMENT]) if AGREEMENT in row else None,
            "votes": votes.get(row["image_id"], []),
            "conflicts": [{"id": name, "label": label_of[name]} for name in conflicts.get(row["image_id"], [])],
            "copies": max(sizes[groups.get(row["image_id"], -1)] - 1, 0) - len(conflicts.get(row["image_id"], [])),
            "near": [{"id": n, "label": label_of[n]} for n in others_of(row["image_id"], near, groups)],
        }
        for row in chosen.head(limit).to_dict("records")
    ]


def others_of(image_id: str, near: dict[str, list[str]], groups: dict[str, int]) -> list[str]:
    """Return the `N_NEAR` nearest images of an image that are no near-duplicates of it."""
    mine = groups.get(image_id)
    return [name for name in near.get(image_id, []) if mine is None or groups.get(name) != mine][:N_NEAR]


def find_conflicts(label_of: dict[str, int], groups: dict[str, int]) -> dict[str, list[str]]:
    """Return the near-duplicates with another label, by image id."""
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
    """Return each member's most probable class, its probability and the given label's, by image id."""
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


def nearest_ids(
    image_ids: np.ndarray, embedding: np.ndarray, shown: Sequence[str], *, reach: int = N_NEAR
) -> dict[str, list[str]]:
    """Return the ids of the `reach` nearest images in an embedding (N, D), for the shown images."""
    rows = pd.Series(np.arange(len(image_ids)), index=image_ids)[list(shown)].to_numpy()
    return dict(zip(shown, image_ids[nearest(embedding, reach=reach, of=rows)].tolist(), strict=True))


def review_thumbnails(rows: Sequence[dict[str, Any]], image_dir: Path) -> dict[str, str]:
    """Return a thumbnail of every image that the rows name, the larger the fewer rows; neighbours get small ones."""
    beside = {other["id"]: NEIGHBOUR for row in rows for other in (*row["near"], *row["conflicts"])}
    sides = beside | {row["id"]: photo_side(len(rows)) for row in rows}
    made = in_threads(
        lambda item: thumbnail(image_dir / item[0], item[1]), list(sides.items()), title="Thumbnails", progress=True
    )
    return dict(zip(sides, made, strict=True))


def review_page(
    rows: Sequence[dict[str, Any]], thumbs: dict[str, str], *, names: ClassNames, key: str, title: str
) -> str:
    """Return the page's HTML; the browser keeps decisions under `key`, which names the report."""
    named = {"classes": names.whole, "brief": names.short, "numbered": names.numbered}
    data = {"key": key, **named, "rows": list(rows), "thumbnails": thumbs}
    # Within a script element only "<" could end it, whatever a file is called.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return str(environment().get_template("review.html").render(data=text, title=title))


def report_header(clean: Path) -> dict[str, Any]:
    """Return the header of a noise report; an empty one for a report without."""
    path = header_path(clean)
    return read_object(path) if path.is_file() else {}


def report_task(clean: Path) -> Task | None:
    """Return the task that a noise report's header names; None for an older report or one without a header."""
    return read_task(report_header(clean), str(header_path(clean)))


def image_folder(data: Path, report: pd.DataFrame, clean: Path, competition: Competition) -> Path:
    """Return the folder of the report's photographs; FileNotFoundError where it is missing or has none of them."""
    folder = find_folder(Path(data) / competition.train_images, "--data must be the competition folder")
    paths = [path_inside(folder, name) for name in report["image_id"]]
    if not any(path.is_file() for path in paths):
        first = report["image_id"].iloc[0]
        raise FileNotFoundError(
            f"{folder} has none of the images that {clean} names (first: {first}); give --data the folder that the "
            "report is of"
        )
    return folder


def write_review(
    clean: Path,
    data: Path,
    out: Path,
    *,
    extras: Extras | None = None,
    limit: int = LIMIT,
    competition: Competition | None = None,
) -> str:
    """Write the review page of a noise report over a competition folder's images; return a line for the user."""
    report, task = read_noise_report(clean), report_task(clean)
    competition = competition or known_competition(task.competition if task else None)
    image_dir = image_folder(data, report, clean, competition)
    rows = review_rows(report, extras, limit=limit)
    if not rows:
        return f"{clean} has no suspicious row: there is nothing to review"
    classes = task.classes if task else competition.classes
    labels = {row["label"] for row in rows} | {row["suggested"] for row in rows}
    shown = [*classes, *(f"class {k}" for k in range(len(classes), max(labels) + 1))]
    names = name_classes(shown, numbered=labels_are_numbers(task, competition))
    key = sha256_bytes(Path(clean).read_bytes())[:16]
    title = competition.title if task is None or task.competition == competition.slug else task.competition
    page = review_page(rows, review_thumbnails(rows, image_dir), names=names, key=key, title=title)
    write_text(out, page)
    return f"{out}: {len(rows):,} photographs to look at, {len(page) / 1e6:.1f} MB; open it in a browser"


def review_files(
    clean: Path,
    data: Path,
    out: Path,
    *,
    files: ReviewFiles | None = None,
    limit: int = LIMIT,
) -> str:
    """Write the page with members' votes, near-duplicates and neighbours: the verb `review`.

    Without an embedding or a backbone the neighbours are the images most alike in their coarse layout.
    """
    from cassava_kit.data.duplicates import group_duplicates
    from cassava_kit.data.fingerprints import FINGERPRINT_CACHE, fingerprint

    check_out(out)
    asked = files or ReviewFiles()
    report, task = read_noise_report(clean), report_task(clean)
    competition = known_competition(task.competition if task else None)
    fold_hash = report_header(clean).get("fold_hash")
    check_embedding_source(asked.embedding, asked.backbone, competition=competition, fold_hash=fold_hash)
    given = asked.or_those_of(clean)
    evidence = given.evidence()
    image_dir = image_folder(data, report, clean, competition)
    ids = report["image_id"].to_numpy()
    there = np.array([(image_dir / name).is_file() for name in ids])
    prints = fingerprint([image_dir / name for name in ids[there]], cache=cache_dir() / FINGERPRINT_CACHE)
    groups = dict(zip(ids[there], group_duplicates(prints).tolist(), strict=True))
    shown = [row["id"] for row in review_rows(report, Extras(groups=groups), limit=limit)]
    backbone = None if given.backbone is None else (given.backbone, Path(data))
    vectors, source = embed_images(ids, given.embedding, backbone, competition)
    if vectors is None:
        ids, vectors, source = ids[there], layout(prints.thumbnails), "coarse layout alone (give --embedding)"
    known = set(ids)
    reach = N_NEAR + max(Counter(groups.values()).values(), default=1) - 1  # whatever the copies among them
    asked_of = [name for name in shown if name in known]
    near = nearest_ids(ids, vectors, asked_of, reach=reach) if len(ids) > N_NEAR else None
    message = write_review(
        clean, data, out, extras=Extras(evidence, near, groups), limit=limit, competition=competition
    )
    votes = ", ".join(evidence.names) if evidence else "not shown (give --oof and --folds)"
    return f"{message}\nmembers' votes: {votes}; neighbours by {source}"


def layout(thumbnails: np.ndarray) -> np.ndarray:
    """Return vectors (N, 63) of length 1 of gray thumbnails: their lowest frequencies without the mean."""
    from cassava_kit.data.duplicates import low_frequencies

    low = low_frequencies(thumbnails).reshape(len(thumbnails), -1)[:, 1:]
    return low / np.maximum(np.linalg.norm(low, axis=1, keepdims=True), 1e-6)
