"""Select trained checkpoints and their weights for a bundle: `from_dry_run` and `from_runs`.

There are three sources: the folder of an earlier `submit.py ensemble`, a weights file of the verb `ensemble`, or run
folders alone, which get equal weights. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cassava_kit.data.folds import Folds, read_folds, write_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.blend import read_weighed
from cassava_kit.evidence.metrics import score
from cassava_kit.evidence.nested import Blend, nested_predictions
from cassava_kit.evidence.oof import Evidence, check_oof, distinct_names, make_evidence
from cassava_kit.evidence.predictions import Predictions, read_predictions, write_predictions
from cassava_kit.files import OOF_FILE, read_json
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, loss_without, read_ensemble
from cassava_kit.kaggle.pack.config import SUBMIT_COMMAND
from cassava_kit.models.checkpoint import CheckpointInfo, fold_checkpoints, read_info

DRY_RUN_OOF, DRY_RUN_FOLDS = "ensemble-oof.csv", "folds.csv"  # as `submit.py ensemble` names them
EVIDENCE = "evidence"
Runs = list[tuple[Path, CheckpointInfo]]


@dataclass(frozen=True)
class Selection:
    """An ensemble, the source file of each checkpoint by its name in the bundle, and notes for the user.

    `evidence` is the ensemble's out-of-fold predictions and their fold file, None where they are not known.
    """

    ensemble: Ensemble
    checkpoints: dict[str, Path]
    evidence: tuple[Predictions, Folds] | None = None
    notes: tuple[str, ...] = ()


def from_dry_run(folder: Path, views: str | None = None) -> Selection:
    """Select the ensemble that `submit.py ensemble` left in `folder`; `views` replaces its views.

    Raises:
        FileNotFoundError: the dry run did not get as far as an ensemble.
        UserError: a later dry run in the folder has begun on another split.
    """
    path = next((p for p in (folder / ENSEMBLE_FILE, folder / "bundle/weights" / ENSEMBLE_FILE) if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no {ENSEMBLE_FILE}; run: {SUBMIT_COMMAND} ensemble --out {folder}")
    ensemble = read_ensemble(path)
    ensemble = ensemble.model_copy(update={"views": _check_views(views)}) if views else ensemble
    checkpoints: dict[str, Path] = {}
    infos = []
    for member in ensemble.members:
        runs = _read_runs(folder / "runs" / member.name)
        found = {f"{info.name}.safetensors": run for run, info in runs}
        checkpoints |= {name: found[name] for name in member.checkpoints if name in found}
        infos += [info for run, info in runs if run in checkpoints.values()]
    _check_split(infos, path)
    oof, folds = folder / DRY_RUN_OOF, folder / DRY_RUN_FOLDS
    if not (oof.is_file() and folds.is_file()):
        return Selection(ensemble, checkpoints)
    split = read_folds(folds)
    return Selection(ensemble, checkpoints, (check_oof(read_predictions(oof), split, str(oof)), split))


def from_runs(
    members: Sequence[Path], *, weights: Path | None = None, views: str = "flips", folds: Path | None = None
) -> Selection:
    """Select run folders (`runs/<run name>`) as members, with the weights of the verb `ensemble` or equal ones.

    The weights file is enough: it names each member's out-of-fold file, which lies in the run folder. With a fold file
    the ensemble is scored out of fold. Two rounds of one recipe get names from as much of their paths as differs.

    Raises:
        FileNotFoundError: a run folder holds no checkpoint.
        UserError: members are of different splits or classes, or do not fit the weights file.
    """
    weighed = read_weighed(weights) if weights else None
    given = dict(zip(distinct_names(members), members, strict=True)) if members else {}
    folders = given or {name: oof.parent for name, oof in (weighed.oof if weighed else {}).items()}
    if not folders:
        raise UserError("give at least one member, or a weights file that names them")
    if weighed and folders.keys() != weighed.oof.keys():
        raise UserError(
            f"{weights} has weights for {', '.join(weighed.oof)}, the run folders are of {', '.join(folders)}; "
            "give the folder of each, or none"
        )
    share = weighed.weights if weighed else dict.fromkeys(folders, 1 / len(folders))
    shares = np.array([share[name] for name in folders])
    blend = replace(weighed.blend, weights=shares) if weighed else Blend(shares)
    runs = {name: _read_runs(folders[name]) for name in folders if share[name] > 0}
    infos = [info for each in runs.values() for _, info in each]
    _check_split(infos, weights)
    names = _bundle_names(runs)
    ensemble = Ensemble(
        members=tuple(_make_member(name, share[name], each, names) for name, each in runs.items()),
        views=_check_views(views),
        prior=tuple(np.mean([info.prior or () for info in infos], axis=0).tolist()),
        fold_hash=infos[0].fold_hash,
        temperatures=blend.listed_temperatures,
    )
    checkpoints = {names[path]: path for each in runs.values() for path, _ in each}
    notes = [f"{name} has weight 0 and is left out" for name in folders if name not in runs]
    notes += [note for name, each in runs.items() for note in _missing_folds(name, [info for _, info in each])]
    if folds is None:
        return Selection(ensemble, checkpoints, notes=(*notes, "without --folds there is no evidence for finals"))
    split = read_folds(folds)
    # Members of weight 0 too: the weights for each fold are found on the other folds, where theirs may be above 0.
    evidence = make_evidence([read_predictions(folders[name] / OOF_FILE) for name in folders], split, list(folders))
    judged = nested_predictions(evidence, blend, "ensemble")
    scored = ensemble.model_copy(update={"oof": oof_facts(evidence, blend, judged)})
    return Selection(scored, checkpoints, (judged, split), tuple(notes))


def _check_views(views: str) -> str:
    """Return the name of a set of views; UserError for an unknown one."""
    from cassava_kit.inference.tta import make_views

    make_views(views)
    return views


def _read_runs(folder: Path) -> Runs:
    """Return each fold's checkpoint in a run folder with its header, in order of the folds."""
    return [(path, read_info(path)) for path in fold_checkpoints(folder)]


def _bundle_names(runs: Mapping[str, Runs]) -> dict[Path, str]:
    """Return the name that each checkpoint gets in the bundle: its header's, and the member's place where two agree."""
    named = [info.name for each in runs.values() for _, info in each]
    return {
        path: f"{info.name}.safetensors" if named.count(info.name) == 1 else f"m{place}-{info.name}.safetensors"
        for place, each in enumerate(runs.values(), start=1)
        for path, info in each
    }


def oof_facts(evidence: Evidence, blend: Blend, judged: Predictions) -> dict[str, Any]:
    """Return the out-of-fold facts that the ensemble file keeps: score, and what each member is worth.

    The score is that of `judged`, the blend's nested predictions. `labels_seen` says what has seen the labels.
    """
    assert judged.header is not None
    found = score(evidence.labels, judged.probabilities, evidence.metric)
    weights, voting = blend.weights, blend.weights > 0
    names = [name for name, votes in zip(evidence.names, voting, strict=True) if votes]
    p, temperatures = evidence.pred_probs[voting], blend.temperatures
    worth = loss_without(evidence.metric, names, evidence.labels, p, weights[voting], temperatures=temperatures)
    return {
        evidence.metric: found.value,
        "standard_error": found.standard_error,
        "rows": found.n,
        "labels": "given",
        "labels_seen": list(judged.header.labels_seen),
        "accuracy": found.accuracy,
        "loss_without": worth,
    }


def _make_member(name: str, weight: float, runs: Runs, names: Mapping[Path, str]) -> EnsembleMember:
    """Return a member of the ensemble; its accuracy is the mean over folds by rows, None where a fold has no score."""
    infos = [info for _, info in runs]
    known = [(info.oof_accuracy, info.oof_rows) for info in infos if info.oof_accuracy is not None and info.oof_rows]
    scored = len(known) == len(infos)
    return EnsembleMember(
        name=name,
        weight=weight,
        checkpoints=tuple(names[path] for path, _ in runs),
        oof_accuracy=sum(a * n for a, n in known) / sum(n for _, n in known) if scored else None,
    )


def _check_split(infos: Sequence[CheckpointInfo], weights: Path | None) -> None:
    """Raise UserError where checkpoints, or the weights file, differ in split or classes, or lack class shares."""
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
    if lacking := [info.name for info in infos if info.prior is None]:
        raise UserError(f"{', '.join(lacking)} lacks the class shares of its training labels; train it again")


def _missing_folds(name: str, infos: Sequence[CheckpointInfo]) -> list[str]:
    """Return a note on the folds of the split for which the member has no checkpoint."""
    wanted = set(range(infos[0].n_splits or len(infos)))
    missing = sorted(wanted - {info.fold for info in infos if info.fold is not None})
    return [f"{name}: fold {', '.join(map(str, missing))} of {len(wanted)} is not trained"] if missing else []


def keep_evidence(selection: Selection, out: Path) -> None:
    """Write the out-of-fold evidence beside the datasets for `finals`; it is not uploaded.

    Evidence of an earlier packing, which is of another ensemble, is deleted.
    """
    for stem in ("oof", "folds"):
        for suffix in (".csv", ".json"):
            (out / EVIDENCE / f"{stem}{suffix}").unlink(missing_ok=True)
    if selection.evidence is not None:
        oof, folds = selection.evidence
        write_predictions(out / EVIDENCE / "oof.csv", oof)
        write_folds(out / EVIDENCE / "folds.csv", folds)
