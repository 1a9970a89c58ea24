"""Ensembles judged out of fold; entry points `weigh` (arrays), `weigh_files` (the verb `ensemble`), `read_weighed`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cassava_kit.competition import Metric
from cassava_kit.data.folds import read_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.compare import Comparison, compare, correct
from cassava_kit.evidence.metrics import Score, baseline, check_scored, gain, score
from cassava_kit.evidence.nested import Blend, Judgement, blend_nested, judge_methods, select_members_alone
from cassava_kit.evidence.oof import Evidence, read_evidence
from cassava_kit.evidence.subset import Advice, advise
from cassava_kit.files import check_apart, find_file, read_json, write_json

WEIGHTS_TOLERANCE = 1e-6  # as in an ensemble file


@dataclass(frozen=True)
class BlendReport:
    """An ensemble judged out of fold: members, majority, correlation of errors (M, M), what each member adds,
    which to leave out.

    `ensemble` is the plain mean's score. `score` is the chosen ensemble's, every fold with weights and temperatures
    found on the other folds.
    """

    names: tuple[str, ...]
    members: dict[str, Score]
    ensemble: Score
    majority: Score
    error_correlation: np.ndarray
    adds: dict[str, Comparison]
    judgement: Judgement
    advice: Advice
    score: Score

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each member, found on all rows by the chosen method."""
        return {name: float(w) for name, w in zip(self.names, self.judgement.weights, strict=True)}

    @property
    def method(self) -> str:
        """The chosen way of weighing: `mean` unless another is proved better."""
        return self.judgement.chosen

    @property
    def temperatures(self) -> np.ndarray | None:
        """Temperature of each class (K,), found on all rows; None where the evidence is not for them."""
        return self.judgement.blend.temperatures

    @property
    def best_member(self) -> str:
        """Name of the member with the best score; it is flattered by having been chosen."""
        return max(self.names, key=lambda name: gain(self.ensemble.metric, 0.0, self.members[name].value))

    def __str__(self) -> str:
        return report_text(self)


def error_correlation(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Return the correlation (M, M) of members' errors (0/1 by row); 0 with a member that is never or always wrong.

    labels (N,), pred_probs (M, N, K).
    """
    wrong = (pred_probs.argmax(axis=2) != labels).astype(float)
    centred = wrong - wrong.mean(axis=1, keepdims=True)
    norm = np.sqrt((centred**2).sum(axis=1))
    safe = np.where(norm > 0, norm, 1)
    return np.where(np.eye(len(wrong), dtype=bool), 1.0, (centred @ centred.T) / np.outer(safe, safe))


def leave_one_out(evidence: Evidence, *, tempered: bool = False) -> dict[str, Comparison]:
    """Return what each member adds to the plain mean of all (negative: costs), corrected for the number of members.

    With `tempered` both means have temperatures, nested.
    """
    if len(evidence.names) == 1:
        return {}
    whole, adds = blend_nested(evidence, "mean", tempered=tempered), []
    for m, name in enumerate(evidence.names):
        rest = select_members_alone(evidence, [other for other in range(len(evidence.names)) if other != m])
        others, names = blend_nested(rest, "mean", tempered=tempered), (f"without {name}", "all")
        adds.append(compare(evidence.labels, others, whole, metric=evidence.metric, names=names))
    return dict(zip(evidence.names, correct(adds), strict=True))


def blend_report(evidence: Evidence) -> BlendReport:
    """Judge an ensemble: scores, correlation of errors, leave-one-out, weights, calibration."""
    plain, labels, judgement = evidence.pred_probs.mean(axis=0), evidence.labels, judge_methods(evidence)
    score_of = partial(score, labels, metric=evidence.metric)
    return BlendReport(
        names=evidence.names,
        members={n: score_of(p) for n, p in zip(evidence.names, evidence.pred_probs, strict=True)},
        ensemble=score_of(plain),
        majority=baseline(evidence.metric, labels, plain.shape[1]),
        error_correlation=error_correlation(labels, evidence.pred_probs),
        adds=leave_one_out(evidence, tempered=judgement.tempering.applied),
        judgement=judgement,
        advice=advise(evidence, judgement),
        score=score_of(judgement.blended),
    )


def report_text(report: BlendReport) -> str:
    """Return the report as lines for a terminal."""
    width = max(len(name) for name in (*report.names, "plain mean"))
    lines = [f"{name:{width}s}  {found}{_alike(report, m)}" for m, (name, found) in enumerate(report.members.items())]
    lines += [f"{'plain mean':{width}s}  {report.ensemble}", f"{'majority':{width}s}  {report.majority}"]
    tempered = ", with temperatures" if report.judgement.tempering.applied else ""
    lines += ["", f"what each member adds to the plain mean of the others (or costs it){tempered}:"]
    lines += [f"{name:{width}s}  {describe_effect(c)}" for name, c in report.adds.items()] or ["(one member alone)"]
    lines += ["", "correlation of errors:"]
    lines += [
        f"{name:{width}s}  " + " ".join(f"{value:5.2f}" for value in row)
        for name, row in zip(report.names, report.error_correlation, strict=True)
    ]
    lines += ["", "weights judged by nested cross-validation:", str(report.judgement)]
    lines.append(f"the ensemble, every fold with what was found on the other folds: {report.score}")
    lines.append(f"advice: {report.advice.sentence}")
    return "\n".join(
        [*lines, "", f"calibration by temperatures of the classes: {report.judgement.tempering.calibration}"]
    )


def _alike(report: BlendReport, m: int) -> str:
    """Return the mean correlation of a member's errors with the others', in words; empty for one member alone."""
    others = np.delete(report.error_correlation[m], m)
    return f"   errors correlate {others.mean():.2f} with the others'" if len(others) else ""


def describe_effect(c: Comparison) -> str:
    """Return whether a member adds or costs, as far as it is proved."""
    word = ("adds" if c.difference > 0 else "costs") if c.proved else "nothing proved"
    return f"{c.difference:+.4f} ± {c.half_width:.4f}: {word}{f' ({c.missing_images()})' if not c.proved else ''}"


def report_values(report: BlendReport) -> dict[str, Any]:
    """Return the report as plain values, for the weights file."""
    tempering = report.judgement.tempering
    calibration = tempering.calibration
    return {
        "metric": report.ensemble.metric,
        "members": {name: score.value for name, score in report.members.items()},
        "plain_mean": report.ensemble.value,
        "standard_error": report.ensemble.standard_error,
        "majority": report.majority.value,
        "against_mean": {
            name: {"difference": c.difference, "interval": list(c.interval), "level": c.level, "proved": c.proved}
            for name, c in report.judgement.comparisons.items()
        },
        "adds": {
            name: {"difference": c.difference, "interval": list(c.interval), "proved": c.proved}
            for name, c in report.adds.items()
        },
        "advice": report.advice.values(),
        "error_correlation": report.error_correlation.round(6).tolist(),
        "calibration": {
            "ece": [calibration.ece_before, calibration.ece_after],
            "logloss": [calibration.logloss_before, calibration.logloss_after],
            "temperatures": calibration.temperatures.tolist(),
            "labels_moved": calibration.moved,
            "applied": tempering.applied,
        },
    }


def weigh(
    labels: ArrayLike,
    members: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    *,
    folds: ArrayLike | None = None,
    metric: Metric = "accuracy",
) -> BlendReport:
    """Weigh members of an ensemble by their out-of-fold probabilities; the plain mean stays unless another is proved.

    Args:
        labels: given labels (N,), whole numbers 0..K-1.
        members: out-of-fold probabilities (N, K) by name, or a list of them, all in the labels' row order.
        folds: fold of each row (N,), across which weights are judged; five stratified ones by default.
        metric: `accuracy`, `macro_f1` or `log_loss`.

    Returns:
        A report with `weights` (by name), `method`, `temperatures` (K,) or None, `score` (each fold with what was found
        on the others), `best_member`, `error_correlation` (M, M), and the whole account as `str()`.

    Raises:
        UserError: where members, labels and folds are not of the same rows, or there are fewer than two folds.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 3, 300)
        >>> good = 0.7 * np.eye(3)[labels] + 0.3 * rng.dirichlet(np.ones(3), 300)
        >>> noise = rng.dirichlet(np.ones(3), 300)
        >>> report = weigh(labels, {"good": good, "noise": noise})
        >>> report.best_member, round(report.score.accuracy, 2)
        ('good', 1.0)
    """
    given = members if isinstance(members, Mapping) else {f"member {m}": p for m, p in enumerate(members)}
    if not given:
        raise UserError("members must be at least one array of probabilities (N, K), got none")
    classes, checked = np.empty(0), {}
    for name, p in given.items():
        classes, checked[name] = check_scored(labels, p, metric, name=name)
    if len({p.shape for p in checked.values()}) > 1:
        shapes = ", ".join(f"{name} {p.shape}" for name, p in checked.items())
        raise UserError(f"members must predict the same rows and classes, got {shapes}")
    fold = _five_folds(classes) if folds is None else np.asarray(folds)
    if fold.shape != classes.shape:
        raise UserError(f"folds must have one number for each of {len(classes)} rows, got shape {fold.shape}")
    rows = np.arange(len(classes)).astype(str)
    evidence = Evidence(tuple(checked), rows, classes, fold, np.stack(list(checked.values())), "", metric)
    return blend_report(evidence)


def _five_folds(labels: np.ndarray) -> np.ndarray:
    """Return five stratified folds (N,); UserError for fewer than ten rows."""
    if len(labels) < 10:
        raise UserError(f"weights are judged on five folds: at least 10 rows are needed, got {len(labels)}")
    fold, order = np.empty(len(labels), int), np.argsort(labels, kind="stable")
    fold[order] = np.arange(len(labels)) % 5  # classes are dealt out one after the other
    return fold


def weigh_files(oof: Sequence[Path], folds: Path, out: Path) -> str:
    """Weigh members' out-of-fold files, write the weights as JSON, and return the report (the verb `ensemble`).

    The paths in the file are relative to its own folder, so that it can be read from any working directory.
    """
    check_apart([out], [folds, *oof])
    evidence = read_evidence(oof, read_folds(folds))
    report = blend_report(evidence)
    chosen = report.judgement.blend
    members = [
        {"name": name, "oof": os.path.relpath(path.resolve(), out.resolve().parent), "weight": float(weight)}
        for name, path, weight in zip(evidence.names, oof, chosen.weights, strict=True)
    ]
    seen = [*evidence.labels_seen, *chosen.labels_seen]
    content = {
        "members": members,
        "method": chosen.method,
        "temperatures": chosen.listed_temperatures,
        "fold_hash": evidence.fold_hash,
        "labels": "given",
        "labels_seen": seen,
        "score": report.score.value,
        **(evidence.task.header() if evidence.task else {}),
        "metric": evidence.metric,
    }
    write_json(out, {**content, "report": report_values(report)})
    return "\n".join([str(report), *(f"note: {text}" for text in seen), str(out)])


@dataclass(frozen=True)
class Weighed:
    """A weights file: the out-of-fold file of each member, and how the ensemble of them answers."""

    oof: dict[str, Path]
    blend: Blend
    fold_hash: str | None

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each member."""
        return {name: float(weight) for name, weight in zip(self.oof, self.blend.weights, strict=True)}


def read_weighed(path: Path) -> Weighed:
    """Read a weights file, as `weigh_files` wrote it.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It has another shape, a weight that is no number of at least 0, weights that do not sum to 1, or a
            temperature that is no number above 0.
    """
    find_file(path, "weights file", "make one with: python -m cassava_kit ensemble --oof ...")
    content = read_json(path)
    try:
        members = [(each["name"], each["weight"], path.parent / each["oof"]) for each in content["members"]]
        temperatures = content.get("temperatures")
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path} is not a weights file of the verb ensemble (members with name, oof, weight)") from None
    again = "make the file again with the verb ensemble"
    for name, weight, _ in members:
        if not _is_number(weight) or weight < 0:
            raise UserError(f"{path}: the weight of {name} must be a number of at least 0, got {weight!r}; {again}")
    total = sum(weight for _, weight, _ in members)
    if abs(total - 1) > WEIGHTS_TOLERANCE:
        each = ", ".join(f"{name} {weight}" for name, weight, _ in members) or "no member"
        raise UserError(f"{path}: weights must sum to 1, got {total:.6g} ({each}); divide each by their sum")
    if temperatures is not None:
        valid = isinstance(temperatures, list) and all(_is_number(each) and each > 0 for each in temperatures)
        if not valid:
            raise UserError(
                f"{path}: temperatures must be a number above 0 for each class, got {temperatures}; {again}"
            )
    weights = np.array([float(weight) for _, weight, _ in members])
    blend = Blend(weights, content.get("method"), None if temperatures is None else np.array(temperatures, float))
    return Weighed({name: oof for name, _, oof in members}, blend, content.get("fold_hash"))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
