"""Ensemble weights judged on rows they were not found on; entry points `judge_methods` and `nested_predictions`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cassava_kit.errors import UserError
from cassava_kit.evidence.compare import Comparison, compare, correct
from cassava_kit.evidence.oof import Evidence, average_members
from cassava_kit.evidence.predictions import Predictions
from cassava_kit.evidence.weighing import WEIGHT_METHODS, find_weights

WEIGHTS_SEEN = "ensemble weights were found on the rows that are scored"
METHOD_SEEN = "the way of weighing was chosen on the rows that are scored; weights were found on the other folds"


@dataclass(frozen=True)
class Judgement:
    """Ways of weighing, each scored on folds that its weights were not found on, and the chosen one.

    `comparisons[method]` is the method against the plain mean; `chosen` is `mean` unless another is proved better
    among all methods. `weights` (M,) are the chosen method's, found on all rows.
    """

    comparisons: dict[str, Comparison]
    chosen: str
    weights: np.ndarray

    def __str__(self) -> str:
        lines = [f"{'mean':8s} {next(iter(self.comparisons.values())).a}"]
        lines += [f"{name:8s} {c.b}   against the mean {c.summary()}" for name, c in self.comparisons.items()]
        lines.append(f"(proved means among all {len(self.comparisons)} methods)")
        if self.chosen == "mean":
            why = "no other weights are proved better"
        else:
            why = f"{self.comparisons[self.chosen].verdict()} against the mean"
        return "\n".join([*lines, f"weights: {self.chosen} ({why})"])


def judge_methods(evidence: Evidence) -> Judgement:
    """Judge every method by nested cross-validation over the evidence's folds, paired with the plain mean.

    The best method that is proved better, corrected for the number of methods, is chosen; without one, the mean.
    """
    if len(np.unique(evidence.fold)) < 2:
        raise UserError("weights are judged on rows they were not found on: the split must have at least 2 folds")
    plain, labels, metric = evidence.pred_probs.mean(axis=0), evidence.labels, evidence.metric
    others = WEIGHT_METHODS[1:]
    pairs = [
        compare(labels, plain, blend_nested(evidence, name), metric=metric, names=("mean", name)) for name in others
    ]
    found = dict(zip(others, correct(pairs), strict=True))
    proved = [name for name in others if found[name].proved and found[name].difference > 0]
    chosen = max(proved, key=lambda name: found[name].difference, default="mean")
    return Judgement(found, chosen, _weights_of(evidence, chosen))


def blend_nested(evidence: Evidence, method: str) -> np.ndarray:
    """Return blended probabilities (N, K), every fold with weights found on the other folds."""
    blended = np.zeros_like(evidence.pred_probs[0])
    for fold in np.unique(evidence.fold):
        out = evidence.fold == fold
        weights = _weights_of(select_rows(evidence, ~out), method)
        blended[out] = np.tensordot(weights, evidence.pred_probs[:, out], axes=1)
    return blended


def _weights_of(evidence: Evidence, method: str) -> np.ndarray:
    return find_weights(evidence.labels, evidence.pred_probs, method, evidence.metric)


def select_rows(evidence: Evidence, keep: np.ndarray) -> Evidence:
    """Return the evidence on some rows alone; keep (N,) bool."""
    return replace(
        evidence,
        image_ids=evidence.image_ids[keep],
        labels=evidence.labels[keep],
        fold=evidence.fold[keep],
        pred_probs=evidence.pred_probs[:, keep],
    )


def nested_predictions(evidence: Evidence, weights: np.ndarray, method: str | None, name: str) -> Predictions:
    """Return the ensemble as an out-of-fold prediction that can be scored.

    With a known method every fold has weights found on the other folds. Weights (M,) of unknown origin are taken as
    they are. `labels_seen` in the header says how labels of the scored rows came in.
    """
    if method not in WEIGHT_METHODS:
        return mark_labels_seen(average_members(evidence, weights, name), WEIGHTS_SEEN)
    blended = replace(evidence, names=(name,), pred_probs=blend_nested(evidence, method)[None])
    predictions = average_members(blended, np.ones(1), name)
    return predictions if method == "mean" else mark_labels_seen(predictions, METHOD_SEEN)


def mark_labels_seen(predictions: Predictions, labels_seen: str) -> Predictions:
    """Return the predictions with a header that says how labels of the scored rows came into them."""
    assert predictions.header is not None
    seen = (*predictions.header.labels_seen, labels_seen)
    return replace(predictions, header=predictions.header.model_copy(update={"labels_seen": seen}))
