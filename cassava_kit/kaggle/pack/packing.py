"""What was trained already, as the ensemble that is packed: nothing is trained again, nothing is guessed.

Three sources: the folder of an earlier `submit.py --ensemble`, a weights file of the verb `ensemble`, or run folders
alone, which are averaged evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cassava_kit.data.folds import Folds, read_folds, write_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.blend import read_weights
from cassava_kit.evidence.metrics import measure
from cassava_kit.evidence.oof import Evidence, average, check_oof, gather
from cassava_kit.evidence.predictions import Predictions, read_predictions, write_predictions
from cassava_kit.files import OOF_FILE, read_json
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, loss_without, read_ensemble
from cassava_kit.models.checkpoint import CheckpointInfo, fold_checkpoints, read_info

OOF, FOLDS = "ensemble-oof.csv", "folds.csv"  # as submit.py --ensemble names them
EVIDENCE = "evidence"


@dataclass(frozen=True)
class Selection:
    """What to pack: the ensemble, its checkpoints by their name in the bundle, and notes for the user.

    `evidence` are the ensemble's out-of-fold predictions and their split, where they are known.
    """

    ensemble: Ensemble
    checkpoints: dict[str, Path]
    evidence: tuple[Predictions, Folds] | None = None
    notes: tuple[str, ...] = ()


def from_dry_run(folder: Path, views: str | None = None) -> Selection:
    """What `submit.py --ensemble` left in `folder`, with other views if they are given.

    FileNotFoundError where it did not come so far, ValueError where a later call has begun on another split.
    """
    path = next((p for p in (folder / ENSEMBLE_FILE, folder / "bundle/weights" / ENSEMBLE_FILE) if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no {ENSEMBLE_FILE}; run: python submit.py --ensemble --out {folder}")
    ensemble = read_ensemble(path)
    ensemble = ensemble.model_copy(update={"views": _known_views(views)}) if views else ensemble
    checkpoints: dict[str, Path] = {}
    infos = []
    for member in ensemble.members:
        runs = [(run, read_info(run)) for run in fold_checkpoints(folder / "runs" / member.name)]
        found = {f"{info.name}.safetensors": run for run, info in runs}
        checkpoints |= {name: found[name] for name in member.checkpoints if name in found}
        infos += [info for run, info in runs if run in checkpoints.values()]
    _of_one_split(infos, path)
    oof, folds = folder / OOF, folder / FOLDS
    if not (oof.is_file() and folds.is_file()):
        return Selection(ensemble, checkpoints)
    split = read_folds(folds)
    return Selection(ensemble, checkpoints, (check_oof(read_predictions(oof), split, str(oof)), split))


def from_runs(
    members: Sequence[Path], *, weights: Path | None = None, views: str = "flips", folds: Path | None = None
) -> Selection:
    """Members by their run folders (`runs/<recipe>`), weighed by a file of the verb `ensemble` or evenly.

    The weights file alone is enough: it names each member's out-of-fold file, beside which its folds lie. With `folds`
    the ensemble is scored out of fold. ValueError where members are of different splits or classes.
    """
    weighed = read_weights(weights) if weights else {}
    if repeated := sorted({folder.name for folder in members if [m.name for m in members].count(folder.name) > 1}):
        raise UserError(f"members need distinct names, got {', '.join(repeated)} more than once")
    folders = {folder.name: folder for folder in members} or {name: oof.parent for name, (_, oof) in weighed.items()}
    if not folders:
        raise UserError("give at least one member, or a weights file that names them")
    if weights and folders.keys() != weighed.keys():
        raise UserError(
            f"{weights} weighs {', '.join(weighed)}, the run folders are of {', '.join(folders)}; "
            "give the folder of each, or none"
        )
    share = {name: weighed[name][0] if weights else 1 / len(folders) for name in folders}
    listed = [name for name in folders if share[name] > 0]
    notes = [f"{name} has no weight and is left out" for name in folders if share[name] == 0]
    runs = {name: [(path, read_info(path)) for path in fold_checkpoints(folders[name])] for name in listed}
    infos = [info for name in listed for _, info in runs[name]]
    _of_one_split(infos, weights)
    notes += [note for name in listed for note in _missing_folds(name, [info for _, info in runs[name]])]
    ensemble = Ensemble(
        members=tuple(_member(name, share[name], [info for _, info in runs[name]]) for name in listed),
        views=_known_views(views),
        prior=tuple(np.mean([info.prior or () for info in infos], axis=0).tolist()),
        fold_hash=infos[0].fold_hash,
    )
    checkpoints = {f"{info.name}.safetensors": path for name in listed for path, info in runs[name]}
    if folds is None:
        return Selection(ensemble, checkpoints, notes=(*notes, "without --folds there is no evidence for --finals"))
    split = read_folds(folds)
    evidence = gather([read_predictions(folders[name] / OOF_FILE) for name in listed], split, listed)
    shares = np.array([share[name] for name in listed])
    scored = ensemble.model_copy(update={"oof": oof_facts(evidence, shares)})
    return Selection(scored, checkpoints, (average(evidence, shares), split), tuple(notes))


def _known_views(views: str) -> str:
    """The name of a set of views; ValueError for another."""
    from cassava_kit.inference.tta import make_views

    make_views(views)
    return views


def oof_facts(evidence: Evidence, weights: np.ndarray) -> dict[str, Any]:
    """What the ensemble file keeps of out-of-fold evidence: the score and what members are worth."""
    score = measure(evidence.metric, evidence.labels, average(evidence, weights).probabilities)
    facts = {evidence.metric: score.value, "standard_error": score.standard_error, "rows": score.n, "labels": "given"}
    facts["accuracy"] = score.accuracy
    worth = loss_without(evidence.metric, evidence.names, evidence.labels, evidence.pred_probs, weights)
    return facts | {"loss_without": worth}


def _member(name: str, weight: float, infos: Sequence[CheckpointInfo]) -> EnsembleMember:
    """A member of the ensemble; its accuracy is the folds' mean, by their rows, where all know theirs."""
    known = [(info.oof_accuracy, info.oof_rows) for info in infos if info.oof_accuracy is not None and info.oof_rows]
    scored = len(known) == len(infos)
    return EnsembleMember(
        name=name,
        weight=weight,
        checkpoints=tuple(f"{info.name}.safetensors" for info in infos),
        oof_accuracy=sum(a * n for a, n in known) / sum(n for _, n in known) if scored else None,
    )


def _of_one_split(infos: Sequence[CheckpointInfo], weights: Path | None) -> None:
    """ValueError where checkpoints, or the weights, are of different splits or classes, or have no class shares."""
    splits = {info.fold_hash: info.name for info in infos}
    if weights:
        splits.setdefault(read_json(weights).get("fold_hash"), str(weights))
    if len(splits) > 1:
        said = ", ".join(f"{name} on {str(split)[:12]}" for split, name in splits.items())
        raise UserError(f"members and weights must be of one split, got {said}; train and weigh them on one fold file")
    classes = {info.n_classes: info.name for info in infos}
    if len(classes) > 1:
        said = ", ".join(f"{name} has {n}" for n, name in classes.items())
        raise UserError(f"members must have the same classes, got {said}; pack those of one competition")
    if any(info.prior is None for info in infos):
        raise UserError("a checkpoint does not know its training labels' class shares; train it again")


def _missing_folds(name: str, infos: Sequence[CheckpointInfo]) -> list[str]:
    wanted = set(range(infos[0].n_splits or len(infos)))
    missing = sorted(wanted - {info.fold for info in infos if info.fold is not None})
    return [f"{name}: fold {', '.join(map(str, missing))} of {len(wanted)} is not trained"] if missing else []


def keep_evidence(selection: Selection, out: Path) -> None:
    """Write the out-of-fold evidence beside the datasets, where `--finals` finds it; it is not uploaded.

    Where there is none, what an earlier packing left goes: it is of another ensemble.
    """
    for stem in ("oof", "folds"):
        for suffix in (".csv", ".json"):
            (out / EVIDENCE / f"{stem}{suffix}").unlink(missing_ok=True)
    if selection.evidence is not None:
        oof, folds = selection.evidence
        write_predictions(out / EVIDENCE / "oof.csv", oof)
        write_folds(out / EVIDENCE / "folds.csv", folds)
