"""Weights and temperatures of an ensemble, judged on rows they were not found on; entry point `judge_methods`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cassava_kit.errors import UserError
from cassava_kit.evidence.calibration import Calibration, apply_temperatures, describe_calibration, fit_temperatures
from cassava_kit.evidence.compare import Comparison, compare, correct
from cassava_kit.evidence.metrics import METRIC_NAMES
from cassava_kit.evidence.oof import Evidence, average_members
from cassava_kit.evidence.predictions import Predictions
from cassava_kit.evidence.weighing import WEIGHT_METHODS, find_weights

WEIGHTS_SEEN = "ensemble weights were found on the rows that are scored"
METHOD_SEEN = "the way of weighing was chosen on the rows that are scored; weights were found on the other folds"
TEMPERATURES_SEEN = (
    "whether temperatures are applied was decided on the rows that are scored; they were found on the other folds"
)


@dataclass(frozen=True)
class Blend:
    """How an ensemble answers: members' weights (M,), the method that found them, and the classes' temperatures (K,).

    `method` is None where it is not known; `temperatures` is None where there are none.
    """

    weights: np.ndarray
    method: str | None = "mean"
    temperatures: np.ndarray | None = None

    @property
    def labels_seen(self) -> tuple[str, ...]:
        """How labels of the scored rows come into its nested predictions."""
        known = (METHOD_SEEN,) if self.method != "mean" else ()
        seen = known if self.method in WEIGHT_METHODS else (WEIGHTS_SEEN,)
        return seen if self.temperatures is None else (*seen, TEMPERATURES_SEEN)

    @property
    def listed_temperatures(self) -> tuple[float, ...] | None:
        """The temperatures as plain numbers, for a file."""
        return None if self.temperatures is None else tuple(map(float, self.temperatures))


@dataclass(frozen=True)
class Tempering:
    """An ensemble before and after a temperature for each class, on folds that the temperatures were not found on.

    `before` and `after` (N, K) are nested. `loss` compares their log-loss, `metric` the competition's metric.
    `temperatures` (K,) are found on all rows.
    """

    before: np.ndarray
    after: np.ndarray
    temperatures: np.ndarray
    loss: Comparison
    metric: Comparison
    calibration: Calibration

    @property
    def applied(self) -> bool:
        """Whether temperatures are applied: the log-loss is proved to be less, and the metric is not worse.

        Log-loss is what temperatures are fitted by, and proves with fewer rows what they are worth.
        """
        return self.loss.proved and self.loss.difference > 0 and self.metric.difference >= 0

    def __str__(self) -> str:
        names = {self.loss.metric: self.loss, self.metric.metric: self.metric}
        said = ", ".join(f"{METRIC_NAMES[name]} {found.verdict()}" for name, found in names.items())
        return (
            f"temperatures of the classes: {'applied' if self.applied else 'not applied'} (positive is better: {said})"
        )


@dataclass(frozen=True)
class Judgement:
    """Ways of weighing, each scored on folds that its weights were not found on, the chosen one, and temperatures.

    `comparisons[method]` is the method against the plain mean; `chosen` is `mean` unless another is proved better
    among all methods. `weights` (M,) are the chosen method's, found on all rows. `tempering` is of the chosen method.
    """

    comparisons: dict[str, Comparison]
    chosen: str
    weights: np.ndarray
    tempering: Tempering

    @property
    def blended(self) -> np.ndarray:
        """The ensemble's probabilities (N, K), every fold with weights and temperatures found on the other folds."""
        return self.tempering.after if self.tempering.applied else self.tempering.before

    @property
    def blend(self) -> Blend:
        """The ensemble that was chosen, with weights and temperatures found on all rows."""
        return Blend(self.weights, self.chosen, self.tempering.temperatures if self.tempering.applied else None)

    def __str__(self) -> str:
        lines = [f"{'mean':8s} {next(iter(self.comparisons.values())).a}"]
        lines += [f"{name:8s} {c.b}   against the mean {c.summary()}" for name, c in self.comparisons.items()]
        lines.append(f"(proved means among all {len(self.comparisons)} methods)")
        if self.chosen == "mean":
            why = "no other weights are proved better"
        else:
            why = f"{self.comparisons[self.chosen].verdict()} against the mean"
        return "\n".join([*lines, f"weights: {self.chosen} ({why})", str(self.tempering)])


def judge_methods(evidence: Evidence) -> Judgement:
    """Judge every method by nested cross-validation over the evidence's folds, paired with the plain mean.

    The best method that is proved better, corrected for the number of methods, is chosen; without one, the mean. Then
    temperatures of the classes are judged for that method.
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
    return Judgement(found, chosen, _weights_of(evidence, chosen), judge_temperatures(evidence, chosen))


def judge_temperatures(evidence: Evidence, method: str) -> Tempering:
    """Judge temperatures of the classes for an ensemble that is weighed by `method`, by nested cross-validation."""
    labels = evidence.labels
    before, after = (blend_nested(evidence, method, tempered=tempered) for tempered in (False, True))
    names = ("without temperatures", "with temperatures")
    loss = compare(labels, before, after, metric="log_loss", names=names)
    metric = (
        loss if evidence.metric == "log_loss" else compare(labels, before, after, metric=evidence.metric, names=names)
    )
    temperatures = fit_temperatures(labels, before)
    return Tempering(
        before, after, temperatures, loss, metric, describe_calibration(labels, before, after, temperatures)
    )


def blend_nested(evidence: Evidence, method: str, *, tempered: bool = False) -> np.ndarray:
    """Return blended probabilities (N, K), every fold with weights found on the other folds.

    With `tempered` temperatures are found there too. The other folds are blended among themselves for that, so that no
    label is behind both its row's weights and the temperatures; where only one other fold is there, with its own
    weights.
    """
    blended = np.zeros_like(evidence.pred_probs[0])
    for fold in np.unique(evidence.fold):
        out = evidence.fold == fold
        rest = select_rows(evidence, ~out)
        weights = _weights_of(rest, method)
        blended[out] = np.tensordot(weights, evidence.pred_probs[:, out], axes=1)
        if tempered:
            own = len(np.unique(rest.fold)) < 2
            others = np.tensordot(weights, rest.pred_probs, axes=1) if own else blend_nested(rest, method)
            blended[out] = apply_temperatures(blended[out], fit_temperatures(rest.labels, others))
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


def select_members_alone(evidence: Evidence, members: Sequence[int]) -> Evidence:
    """Return the evidence of some members alone, by their indices."""
    names = tuple(evidence.names[m] for m in members)
    return replace(evidence, names=names, pred_probs=evidence.pred_probs[list(members)])


def nested_predictions(evidence: Evidence, blend: Blend, name: str) -> Predictions:
    """Return the ensemble as an out-of-fold prediction that can be scored.

    With a known method every fold has weights and temperatures found on the other folds. Where the method is not known,
    both are taken as they are. `labels_seen` in the header says how labels of the scored rows came in.
    """
    if blend.method in WEIGHT_METHODS:
        blended = blend_nested(evidence, blend.method, tempered=blend.temperatures is not None)
    else:
        blended = np.tensordot(blend.weights, evidence.pred_probs, axes=1)
        blended = blended if blend.temperatures is None else apply_temperatures(blended, blend.temperatures)
    predictions = average_members(replace(evidence, names=(name,), pred_probs=blended[None]), np.ones(1), name)
    return mark_labels_seen(predictions, *blend.labels_seen)


def mark_labels_seen(predictions: Predictions, *labels_seen: str) -> Predictions:
    """Return the predictions with a header that says how labels of the scored rows came into them."""
    assert predictions.header is not None
    seen = (*predictions.header.labels_seen, *labels_seen)
    return replace(predictions, header=predictions.header.model_copy(update={"labels_seen": seen}))
