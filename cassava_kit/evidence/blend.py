"""Ensemble weights from out-of-fold evidence, each way of choosing them judged against the plain mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cassava_kit.competition import Metric
from cassava_kit.data.folds import read_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.calibration import Calibration, calibrate
from cassava_kit.evidence.compare import Comparison, compare, correct
from cassava_kit.evidence.metrics import Score, baseline, gain, score, statistic
from cassava_kit.evidence.oof import Evidence, average, gather_files
from cassava_kit.evidence.predictions import Predictions
from cassava_kit.files import read_json, write_json

METHODS = ("mean", "logloss", "greedy", "stack")
GREEDY_ROUNDS = 20
EM_ROUNDS = 500
EM_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Judgement:
    """Each method's weights were found without the fold on which they are scored; `chosen` is what that proves.

    `comparisons[method]` is the method against the plain mean; `chosen` is `mean` unless another is proved better
    even among all methods tried. `weights` (M,) are the chosen method's, found on all rows.
    """

    comparisons: dict[str, Comparison]
    chosen: str
    weights: np.ndarray

    def __str__(self) -> str:
        lines = [f"{'mean':8s} {next(iter(self.comparisons.values())).a}"]
        lines += [f"{name:8s} {c.b}   against the mean {c.summary()}" for name, c in self.comparisons.items()]
        lines.append(f"(proved means among all {len(self.comparisons)} methods)")
        if self.chosen == "mean":
            why = "no other weights are proved better, and a tie goes to the mean"
        else:
            why = f"{self.comparisons[self.chosen].verdict()} against the mean"
        return "\n".join([*lines, f"weights: {self.chosen} ({why})"])


@dataclass(frozen=True)
class BlendReport:
    """The whole account of an ensemble: members, majority, errors' correlation (M, M), what each member adds.

    `calibration` is the plain mean's, before and after class-wise temperatures.
    """

    names: tuple[str, ...]
    members: dict[str, Score]
    ensemble: Score
    majority: Score
    error_correlation: np.ndarray
    adds: dict[str, Comparison]
    judgement: Judgement
    calibration: Calibration

    def __str__(self) -> str:
        return report_text(self)


def mean_weights(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """The plain mean: 1/M each."""
    return np.full(len(pred_probs), 1 / len(pred_probs))


def logloss_weights(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Weights on the simplex with the least log-loss, by expectation maximisation (the problem is convex).

    Members are a mixture; w_m <- mean of member m's share in the mixture's probability of the label.
    """
    p = np.clip(pred_probs[:, np.arange(len(labels)), labels], 1e-12, None)
    w = mean_weights(labels, pred_probs)
    for _ in range(EM_ROUNDS):
        share = w[:, None] * p
        new = (share / share.sum(axis=0)).mean(axis=1)
        done = np.abs(new - w).max() < EM_TOLERANCE
        w = new
        if done:
            break
    return w / w.sum()


def greedy_weights(labels: np.ndarray, pred_probs: np.ndarray, metric: Metric) -> np.ndarray:
    """Ensemble selection with replacement (Caruana et al. 2004): add the member that helps most, twenty times.

    Helps: metric, then log-loss, then the earlier member; the weights are of the best round, the earliest of equals.
    """
    total, counts = np.zeros_like(pred_probs[0]), np.zeros(len(pred_probs))
    best: tuple[tuple[float, float], np.ndarray] | None = None
    for _ in range(GREEDY_ROUNDS):
        scores = [_fit(labels, total + member, metric) for member in pred_probs]
        m = max(range(len(scores)), key=lambda i: (scores[i], -i))
        total, counts[m] = total + pred_probs[m], counts[m] + 1
        if best is None or scores[m] > best[0]:
            best = scores[m], counts / counts.sum()
    assert best is not None
    return best[1]


def _fit(labels: np.ndarray, total: np.ndarray, metric: Metric) -> tuple[float, float]:
    """The metric and the mean log-probability of an unnormalised blend (N, K); larger is better."""
    right = total[np.arange(len(labels)), labels] / total.sum(axis=1)
    value = statistic(metric, labels, total)(np.ones(len(labels)))
    return gain(metric, 0.0, value), float(np.log(np.clip(right, 1e-12, None)).mean())


def stack_weights(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Stacking with non-negative least squares (Breiman 1996): regress the one-hot label on members' probabilities."""
    from scipy.optimize import nnls

    onehot = np.eye(pred_probs.shape[2])[labels]
    design = pred_probs.reshape(len(pred_probs), -1)
    # The normal equations' square root keeps the problem M x M for any number of rows.
    gram, moment = design @ design.T, design @ onehot.ravel()
    root = np.linalg.cholesky(gram + 1e-9 * np.trace(gram) * np.eye(len(gram)))
    w, _ = nnls(root.T, np.linalg.solve(root, moment))
    return w / w.sum() if w.sum() > 0 else mean_weights(labels, pred_probs)


def blend_weights(evidence: Evidence, method: str = "mean") -> np.ndarray:
    """Members' weights (M,), at least 0 and summing to 1, found on all rows: `mean`, `logloss`, `greedy` or `stack`."""
    found: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "mean": mean_weights,
        "logloss": logloss_weights,
        "greedy": partial(greedy_weights, metric=evidence.metric),
        "stack": stack_weights,
    }
    if method not in found:
        raise UserError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return found[method](evidence.labels, evidence.pred_probs)


def nested(evidence: Evidence, method: str) -> np.ndarray:
    """Blended probabilities (N, K), every fold with weights found on the other folds."""
    blended = np.zeros_like(evidence.pred_probs[0])
    for fold in np.unique(evidence.fold):
        out = evidence.fold == fold
        weights = blend_weights(rows(evidence, ~out), method)
        blended[out] = np.tensordot(weights, evidence.pred_probs[:, out], axes=1)
    return blended


WEIGHTS_SEEN = "ensemble weights were found on the rows that are scored"
METHOD_SEEN = "the way of weighing was chosen on the rows that are scored; weights were found on the other folds"


def nested_predictions(evidence: Evidence, weights: np.ndarray, method: str | None, name: str) -> Predictions:
    """Return the ensemble as an out-of-fold prediction that is fit to be scored.

    With a known method every fold has weights found on the other folds, and the plain mean needs none. Weights of
    unknown origin (M,) are taken as they are. The header says what has seen the labels.
    """
    if method not in METHODS:
        return marked(average(evidence, weights, name), WEIGHTS_SEEN)
    blended = replace(evidence, names=(name,), pred_probs=nested(evidence, method)[None])
    predictions = average(blended, np.ones(1), name)
    return predictions if method == "mean" else marked(predictions, METHOD_SEEN)


def marked(predictions: Predictions, labels_seen: str) -> Predictions:
    """Return the predictions with a header that says how labels of the scored rows came into them."""
    assert predictions.header is not None
    seen = (*predictions.header.labels_seen, labels_seen)
    return replace(predictions, header=predictions.header.model_copy(update={"labels_seen": seen}))


def rows(evidence: Evidence, keep: np.ndarray) -> Evidence:
    """The evidence on some rows alone, keep (N,) bool."""
    return replace(
        evidence,
        image_ids=evidence.image_ids[keep],
        labels=evidence.labels[keep],
        fold=evidence.fold[keep],
        pred_probs=evidence.pred_probs[:, keep],
    )


def judge(evidence: Evidence) -> Judgement:
    """Judge every method by nested cross-validation over the evidence's folds, paired with the plain mean.

    The best method that is proved better, corrected for the number of methods, is chosen; without one, the mean.
    """
    if len(np.unique(evidence.fold)) < 2:
        raise UserError("weights are judged on rows they were not found on: the split must have at least 2 folds")
    plain, labels, metric = evidence.pred_probs.mean(axis=0), evidence.labels, evidence.metric
    others = METHODS[1:]
    pairs = [compare(labels, plain, nested(evidence, name), metric=metric, names=("mean", name)) for name in others]
    found = dict(zip(others, correct(pairs), strict=True))
    proved = [name for name in others if found[name].proved and found[name].difference > 0]
    chosen = max(proved, key=lambda name: found[name].difference, default="mean")
    return Judgement(found, chosen, blend_weights(evidence, chosen))


def error_correlation(evidence: Evidence) -> np.ndarray:
    """Correlation (M, M) of members' errors (0/1 by row); 0 against a member that is never, or always, wrong."""
    wrong = (evidence.pred_probs.argmax(axis=2) != evidence.labels).astype(float)
    centred = wrong - wrong.mean(axis=1, keepdims=True)
    norm = np.sqrt((centred**2).sum(axis=1))
    safe = np.where(norm > 0, norm, 1)
    return np.where(np.eye(len(wrong), dtype=bool), 1.0, (centred @ centred.T) / np.outer(safe, safe))


def leave_one_out(evidence: Evidence) -> dict[str, Comparison]:
    """Return what each member adds to the plain mean of all (negative: costs), corrected for the number of members."""
    if len(evidence.names) == 1:
        return {}
    whole, adds = evidence.pred_probs.mean(axis=0), []
    for m, name in enumerate(evidence.names):
        others = np.delete(evidence.pred_probs, m, axis=0).mean(axis=0)
        names = (f"without {name}", "all")
        adds.append(compare(evidence.labels, others, whole, metric=evidence.metric, names=names))
    return dict(zip(evidence.names, correct(adds), strict=True))


def blend_report(evidence: Evidence) -> BlendReport:
    """Members' scores, the plain mean's, the majority's, errors' correlation, leave-one-out, judgement, calibration."""
    plain, labels = evidence.pred_probs.mean(axis=0), evidence.labels
    score_of = partial(score, labels, metric=evidence.metric)
    return BlendReport(
        names=evidence.names,
        members={n: score_of(p) for n, p in zip(evidence.names, evidence.pred_probs, strict=True)},
        ensemble=score_of(plain),
        majority=baseline(evidence.metric, labels, plain.shape[1]),
        error_correlation=error_correlation(evidence),
        adds=leave_one_out(evidence),
        judgement=judge(evidence),
        calibration=calibrate(labels, plain, evidence.fold),
    )


def report_text(report: BlendReport) -> str:
    """The report as lines for a terminal."""
    width = max(len(name) for name in (*report.names, "plain mean"))
    lines = [f"{name:{width}s}  {score}" for name, score in report.members.items()]
    lines += [f"{'plain mean':{width}s}  {report.ensemble}", f"{'majority':{width}s}  {report.majority}"]
    lines += ["", "what each member adds to the plain mean of the others (or costs it):"]
    lines += [f"{name:{width}s}  {effect(c)}" for name, c in report.adds.items()] or ["(one member alone)"]
    lines += ["", "correlation of errors:"]
    lines += [
        f"{name:{width}s}  " + " ".join(f"{value:5.2f}" for value in row)
        for name, row in zip(report.names, report.error_correlation, strict=True)
    ]
    lines += ["", "weights judged by nested cross-validation:", str(report.judgement)]
    return "\n".join([*lines, "", f"calibration of the plain mean: {report.calibration}"])


def effect(c: Comparison) -> str:
    """Whether a member adds or costs, as far as it is proved."""
    word = ("adds" if c.difference > 0 else "costs") if c.proved else "nothing proved"
    return f"{c.difference:+.4f} ± {c.half_width:.4f}: {word}{f' ({c.missing_images()})' if not c.proved else ''}"


def account(report: BlendReport) -> dict[str, Any]:
    """The report as plain values, for the weights file."""
    calibration = report.calibration
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
        "error_correlation": report.error_correlation.round(6).tolist(),
        "calibration": {
            "ece": [calibration.ece_before, calibration.ece_after],
            "logloss": [calibration.logloss_before, calibration.logloss_after],
            "temperatures": calibration.temperatures.tolist(),
        },
    }


def weigh_files(oof: Sequence[Path], folds: Path, out: Path) -> str:
    """Weigh members' out-of-fold files, write the weights as JSON, and return the report (the verb `ensemble`).

    The paths in the file are relative to its own folder, so that it can be read from any working directory.
    """
    evidence = gather_files(oof, read_folds(folds))
    report = blend_report(evidence)
    chosen = report.judgement
    members = [
        {"name": name, "oof": os.path.relpath(path.resolve(), out.resolve().parent), "weight": float(weight)}
        for name, path, weight in zip(evidence.names, oof, chosen.weights, strict=True)
    ]
    content = {"members": members, "method": chosen.chosen, "fold_hash": evidence.fold_hash, "labels": "given"}
    write_json(out, {**content, "report": account(report)})
    return f"{report}\n{out}"


def read_weights(path: Path) -> dict[str, tuple[float, Path]]:
    """Return weight and out-of-fold file by member, as `weigh_files` wrote them; UserError for another file."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}; make one with: python -m cassava_kit ensemble --oof ...")
    try:
        return {each["name"]: (float(each["weight"]), path.parent / each["oof"]) for each in read_json(path)["members"]}
    except (KeyError, TypeError):
        raise UserError(f"{path} is no weights file of the verb ensemble (members with name, oof, weight)") from None
