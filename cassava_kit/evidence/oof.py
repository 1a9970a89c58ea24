"""Out-of-fold predictions: what may be scored, and members joined on one split; entry point `read_evidence`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cassava_kit.competition import Metric, Task, common_task, current
from cassava_kit.data.folds import TEST, Folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.predictions import Header, Predictions, Source, make_predictions, read_predictions


@dataclass(frozen=True)
class Evidence:
    """Members' out-of-fold probabilities on the same rows.

    `image_ids` (N,), `labels` (N,), `fold` (N,), `pred_probs` (M, N, K); `metric` is what they are judged by, `task`
    what else the files say of their competition. `labels_seen` says of members how labels of the rows that they are
    scored on came into them.
    """

    names: tuple[str, ...]
    image_ids: np.ndarray
    labels: np.ndarray
    fold: np.ndarray
    pred_probs: np.ndarray
    fold_hash: str
    metric: Metric = "accuracy"
    task: Task | None = None
    labels_seen: tuple[str, ...] = ()

    def seen_by(self, *names: str) -> tuple[str, ...]:
        """Return what `labels_seen` says of these members alone."""
        return tuple(text for text in self.labels_seen if text.startswith(tuple(f"{name}: " for name in names)))


def refuse_in_sample(predictions: Predictions, folds: Folds, name: str) -> None:
    """Raise UserError where a checkpoint behind these predictions was trained on a row that is to be scored."""
    known = folds.frame.set_index("image_id")["fold"]
    fold = known.reindex(predictions.ids)
    header = predictions.header
    for source in header.sources if header else ():
        if source.fold_hash is not None and source.fold_hash != folds.hash:
            raise UserError(
                f"{name}: checkpoint {source.name} was trained on another split (fold hash {source.fold_hash[:12]}, "
                f"this fold file is {folds.hash[:12]}); score it with its own fold file"
            )
    if header is not None and header.kind == "oof":
        _refuse_seen_folds(header.sources, fold, name)
        return
    for source in header.sources if header else ():
        # A checkpoint of this split has seen neither the fold that it is scored on nor the test part.
        seen = fold.notna() & (~fold.isin((source.fold, TEST)) if source.fold is not None else True)
        if seen.any():
            raise UserError(_trained_on(name, source, fold.index[seen]))


def _refuse_seen_folds(sources: Sequence[Source], fold: pd.Series, name: str) -> None:
    """Raise UserError where a checkpoint was trained on all rows, or where no checkpoint held a row out."""
    for source in sources:
        if source.fold is None and fold.notna().any():
            raise UserError(_trained_on(name, source, fold.index[fold.notna()]))
    seen = fold.notna() & ~fold.isin([source.fold for source in sources])
    if sources and seen.any():
        raise UserError(_trained_on(name, sources[0], fold.index[seen]))


def _trained_on(name: str, source: Source, rows: pd.Index) -> str:
    """Return the message that names the checkpoint and the rows it was trained on."""
    remedy = "train one checkpoint for each fold" if source.fold is None else f"on the rows of fold {source.fold} alone"
    return (
        f"{name}: checkpoint {source.name} was trained on {len(rows)} of these rows (first: {rows[0]}); "
        f"score it out of fold, {remedy}"
    )


def check_oof(predictions: Predictions, folds: Folds, name: str) -> Predictions:
    """Check that predictions are out of fold and cover this split; return them in the fold file's row order.

    The kit's files carry the split's hash in their header. A foreign file (no header) must have a `fold` column that
    agrees with the fold file row by row.

    Raises:
        UserError: It is another split, rows are missing or in excess, or a fold differs.
    """
    refuse_in_sample(predictions, folds, name)
    header = predictions.header
    if header is not None and header.kind != "oof":
        raise UserError(
            f"{name} is a prediction of images (kind {header.kind!r}), not out of fold; give a run's oof.csv"
        )
    if header is not None and header.fold_hash != folds.hash:
        other = header.fold_hash[:12] if header.fold_hash else "no split"
        raise UserError(
            f"{name} was made on {other}, this fold file is {folds.hash[:12]}; train on one split throughout"
        )
    if "fold" not in predictions.frame:
        raise UserError(
            f"{name} has no fold column; out-of-fold predictions need the fold in which each row was held out"
        )
    mine, theirs = folds.scored["image_id"].to_numpy(), predictions.ids
    # By hashing: numpy's set functions compare names pair by pair, five seconds for 21,397 of them.
    missing, extra = pd.Index(mine).difference(theirs), pd.Index(theirs).difference(mine)
    if len(missing) or len(extra):
        which = f"{len(missing)} rows of the fold file are missing (first: {missing[0]})" if len(missing) else ""
        more = f"{len(extra)} rows are not in it (first: {extra[0]})" if len(extra) else ""
        raise UserError(f"{name}: {', '.join(filter(None, (which, more)))}; predict every fold, and nothing else")
    frame = predictions.frame.set_index("image_id").loc[mine].reset_index()
    differs = frame["fold"].to_numpy() != folds.scored["fold"].to_numpy()
    if differs.any():
        row = int(np.argmax(differs))
        raise UserError(
            f"{name} has fold {frame['fold'].iloc[row]} for {mine[row]}, the fold file has "
            f"{folds.scored['fold'].iloc[row]}; these are not out-of-fold predictions of this split"
        )
    return Predictions(frame, header)


def make_evidence(members: Sequence[Predictions], folds: Folds, names: Sequence[str]) -> Evidence:
    """Join members' out-of-fold predictions on the fold file's rows and check each of them.

    The metric is the one that the fold file and the members' headers name; without any, the current competition's.

    Raises:
        UserError: A member is not out of fold on this split, or files are of different competitions or metrics.
    """
    if len(set(names)) != len(names) or not names:
        raise UserError(f"members must be at least one and have different names, got {', '.join(names) or 'none'}")
    checked = [check_oof(member, folds, name) for member, name in zip(members, names, strict=True)]
    widths = {m.probabilities.shape[1] for m in checked}
    if len(widths) != 1:
        raise UserError(f"members must predict the same classes, got {sorted(widths)} of them in {', '.join(names)}")
    width = widths.pop()
    task = find_task(folds, dict(zip(names, members, strict=True)), width)
    frame = folds.scored
    outside = frame["label"][~frame["label"].between(0, width - 1)]
    if len(outside):
        row = frame.loc[outside.index[0]]
        raise UserError(
            f"the fold file gives {row['image_id']} label {row['label']}, {names[0]} predicts classes "
            f"0..{width - 1}; both must be of one competition"
        )
    return Evidence(
        names=tuple(names),
        image_ids=frame["image_id"].to_numpy(),
        labels=frame["label"].to_numpy(),
        fold=frame["fold"].to_numpy(),
        pred_probs=np.stack([m.probabilities for m in checked]),
        fold_hash=folds.hash,
        metric=task.metric if task else current().metric,
        task=task,
        labels_seen=tuple(
            f"{name}: {text}"
            for name, member in zip(names, members, strict=True)
            for text in (member.header.labels_seen if member.header else ())
        ),
    )


def find_task(folds: Folds, members: Mapping[str, Predictions], width: int) -> Task | None:
    """Return what the files of a split and its members, by name, are of; None where no file says it.

    `width` is the number of classes that the members predict.

    Raises:
        UserError: where they are of different competitions or metrics, or the members do not predict their classes.
    """
    tasks = {"the fold file": folds.task}
    tasks |= {name: member.header.task for name, member in members.items() if member.header is not None}
    if not any(tasks.values()):
        return None
    task = common_task(tasks)
    if len(task.classes) != width:
        raise UserError(
            f"{', '.join(members)} must predict the {len(task.classes)} classes of {task.competition}, got {width}"
        )
    return task


def read_evidence(oof: Sequence[Path], folds: Folds) -> Evidence:
    """Read members' out-of-fold files, join them on the fold file's rows and check each of them."""
    names = member_names(oof)
    return make_evidence([read_predictions(path) for path in oof], folds, names)


def member_names(oof: Sequence[Path]) -> list[str]:
    """Return a distinct name for each file: its folder's where the file is an `oof.csv`, else its own.

    Names that are alike get as much of the path as tells them apart: `round1/runs/resnet50`, `round2/runs/resnet50`.

    Raises:
        UserError: where a file is given twice.
    """
    return distinct_names([path.parent if path.stem == "oof" else path.parent / path.stem for path in oof])


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest end of each path that no other one has; UserError where a path is given twice."""
    parts = [path.resolve().parts for path in paths]
    if repeated := sorted({str(Path(*part)) for part in parts if parts.count(part) > 1}):
        raise UserError(f"members must differ, got {', '.join(repeated)} more than once; give each once")

    def name(part: tuple[str, ...]) -> str:
        depths = range(1, len(part) + 1)
        unique = (depth for depth in depths if sum(other[-depth:] == part[-depth:] for other in parts) == 1)
        return Path(*part[-next(unique) :]).as_posix()

    return [name(part) for part in parts]


def fold_predictions(
    folds: Folds, fold: int, probabilities: np.ndarray, name: str, *, labels_seen: tuple[str, ...] = ()
) -> Predictions:
    """Return a fold's own rows with probabilities (n, K) in their order, by a model that was not trained on them.

    `labels_seen` says in the header how their labels came into the training all the same.
    """
    rows = folds.validation(fold)
    source = Source(name=name, fold=fold, fold_hash=folds.hash)
    header = Header(
        name=name,
        kind="oof",
        fold_hash=folds.hash,
        sources=(source,),
        labels_seen=labels_seen,
        **task_fields(folds.task),
    )
    ids, column = rows["image_id"].to_numpy(), np.full(len(rows), fold)
    return make_predictions(ids, probabilities, header=header, fold=column)


def join_folds(parts: Sequence[Predictions], folds: Folds, name: str) -> Predictions:
    """Join the parts that each fold's run wrote; together they must cover every row exactly once."""
    for part in parts:
        if part.header is not None and part.header.fold_hash not in (None, folds.hash):
            raise UserError(
                f"{name}: the part {part.header.name} was made on {part.header.fold_hash[:12]}, this fold file is "
                f"{folds.hash[:12]}; train on one split throughout"
            )
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    repeated = frame["image_id"].duplicated()
    if repeated.any():
        raise UserError(
            f"{name}: {frame['image_id'][repeated].iloc[0]} is predicted by two folds; parts must not overlap"
        )
    sources = tuple(source for part in parts if part.header for source in part.header.sources)
    seen = dict.fromkeys(text for part in parts if part.header for text in part.header.labels_seen)
    header = Header(
        name=name,
        kind="oof",
        fold_hash=folds.hash,
        sources=sources,
        labels_seen=tuple(seen),
        **task_fields(folds.task),
    )
    return check_oof(Predictions(frame, header), folds, name)


def task_fields(task: Task | None) -> dict[str, Any]:
    """Return the fields of a prediction header that say what is predicted; nothing where it is not known."""
    return task.header() if task is not None else {}


def average_members(evidence: Evidence, weights: np.ndarray, name: str = "ensemble") -> Predictions:
    """Return the weighted mean of members' probabilities as an out-of-fold prediction; weights (M,) sum to 1."""
    blended = np.tensordot(weights, evidence.pred_probs, axes=1)
    header = Header(
        name=name,
        kind="oof",
        fold_hash=evidence.fold_hash,
        labels_seen=evidence.labels_seen,
        **task_fields(evidence.task),
    )
    return make_predictions(evidence.image_ids, blended, header=header, fold=evidence.fold)
