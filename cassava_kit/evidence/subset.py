"""Which members to leave out of an ensemble, by nested evidence; entry point `advise`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cassava_kit.competition import Metric
from cassava_kit.evidence.calibration import apply_temperatures, fit_temperatures
from cassava_kit.evidence.compare import Comparison, compare, correct
from cassava_kit.evidence.metrics import gain, score
from cassava_kit.evidence.nested import Judgement, blend_nested
from cassava_kit.evidence.oof import Evidence
from cassava_kit.evidence.weighing import fit_of_blend

NO_WEIGHT = 5e-4  # expectation maximisation never reaches 0: a smaller weight is shown as .000


@dataclass(frozen=True)
class Advice:
    """Which members to leave out, and how the ensemble stands against its best member.

    `leave_out` names members, none where no smaller ensemble is better on folds that the choice did not see.
    `against_all` compares the smaller ensemble with all members (None for one member alone); `against_best` compares
    the ensemble with its best member, which is flattered by having been chosen. Both are nested, and corrected for
    being two.
    """

    leave_out: tuple[str, ...]
    against_all: Comparison | None
    against_best: Comparison | None

    @property
    def below_best(self) -> bool:
        """Whether the ensemble scores below its best member."""
        return self.against_best is not None and self.against_best.difference < 0

    @property
    def sentence(self) -> str:
        """The advice in one sentence."""
        if self.against_all is None or self.against_best is None:
            return "one member alone: add one of another family"
        best, below = self.against_best.names[0], _describe(self.against_best, abs(self.against_best.difference))
        if self.leave_out:
            advice = f"leave {_join(self.leave_out)} out: {_describe(self.against_all)}"
        elif self.below_best:
            advice = f"no smaller ensemble is better by nested evidence: submit {best} alone, or add another family"
        else:
            advice = "keep every member: no smaller ensemble is better by nested evidence"
        return f"below its best member, {best}, by {below}; {advice}" if self.below_best else advice

    def values(self) -> dict[str, Any]:
        """Return the advice as plain values, for JSON."""
        return {
            "leave_out": list(self.leave_out),
            "against_all": self.against_all and self.against_all.values(),
            "against_best": self.against_best and self.against_best.values(),
            "sentence": self.sentence,
        }


def advise(evidence: Evidence, judgement: Judgement) -> Advice:
    """Advise which members to leave out of an ensemble.

    Where the plain mean was chosen, members leave by backward elimination (`select_members`); where other weights were
    proved better, those of weight .000. In both cases each fold is scored with what was chosen on the other folds.
    """
    if len(evidence.names) == 1:
        return Advice((), None, None)
    labels, metric = evidence.labels, evidence.metric
    scores = [score(labels, each, metric).value for each in evidence.pred_probs]
    best = max(range(len(scores)), key=lambda m: gain(metric, 0.0, scores[m]))
    names, tempered = (evidence.names[best], "ensemble"), judgement.tempering.applied
    against_best = compare(labels, evidence.pred_probs[best], judgement.blended, metric=metric, names=names)
    if judgement.chosen == "mean":
        kept = select_members(labels, evidence.pred_probs, metric, tempered=tempered)
        before, after = judgement.blended, select_nested(evidence, tempered=tempered)
    else:
        kept = list(np.flatnonzero(judgement.weights >= NO_WEIGHT))
        before, after = blend_nested(evidence, "mean", tempered=tempered), judgement.blended
    against_all = compare(labels, before, after, metric=metric, names=("all members", "fewer members"))
    against_all, against_best = correct([against_all, against_best])
    left = [name for m, name in enumerate(evidence.names) if m not in kept]
    return Advice(tuple(left) if against_all.difference > 0 else (), against_all, against_best)


def select_members(labels: np.ndarray, pred_probs: np.ndarray, metric: Metric, *, tempered: bool = False) -> list[int]:
    """Return the members (M, N, K) that backward elimination keeps, as indices.

    The member whose absence helps the plain mean of the others most leaves, until none helps. What helps is the
    metric, then the log-loss; with `tempered` those of the mean with temperatures.
    """

    def fit(total: np.ndarray) -> tuple[float, float]:
        if tempered:
            mean = total / total.sum(axis=1, keepdims=True)
            total = apply_temperatures(mean, fit_temperatures(labels, mean))
        return fit_of_blend(labels, total, metric)

    kept = list(range(len(pred_probs)))
    reached = fit(pred_probs.sum(axis=0))
    while len(kept) > 1:
        total = pred_probs[kept].sum(axis=0)
        fits = {m: fit(total - pred_probs[m]) for m in kept}
        leaves = max(kept, key=lambda m: fits[m])
        if fits[leaves] <= reached:
            break
        reached = fits[leaves]
        kept.remove(leaves)
    return kept


def select_nested(evidence: Evidence, *, tempered: bool = False) -> np.ndarray:
    """Return the plain mean's probabilities (N, K), each fold with what was selected on the other folds.

    That is members, and with `tempered` temperatures of the classes.
    """
    blended = np.empty_like(evidence.pred_probs[0])
    for fold in np.unique(evidence.fold):
        out = evidence.fold == fold
        labels, rest = evidence.labels[~out], evidence.pred_probs[:, ~out]
        kept = select_members(labels, rest, evidence.metric, tempered=tempered)
        blended[out] = evidence.pred_probs[kept][:, out].mean(axis=0)
        if tempered:
            blended[out] = apply_temperatures(blended[out], fit_temperatures(labels, rest[kept].mean(axis=0)))
    return blended


def _describe(comparison: Comparison, difference: float | None = None) -> str:
    """Return the difference with half its interval, and whether it is proved."""
    shown = f"{comparison.difference:+.4f}" if difference is None else f"{difference:.4f}"
    return f"{shown} ± {comparison.half_width:.4f} ({'proved' if comparison.proved else 'not proved'})"


def _join(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
