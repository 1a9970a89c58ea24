"""Which labels are probably wrong: confident learning, a second round on the members' own evidence, and how many.

Confident learning (confident.py) is the start. What is added, each because it earned its place in
benchmarks/bench_noise.py:

1. A second round, twice, without training any network again (restack.py), and neighbours in an embedding.
2. How many. Where flips do not look at the image (class-conditional noise) the rows on which the evidence is surest
   disagree with their labels as often as all others are wrong: their disagreement is the noise, and what unsure rows
   add to it is the members' own error. Where ambiguous images are flipped, as people do (instance-dependent noise), the
   sure rows hardly ever disagree, nearly every disagreement is a wrong label, and the confident joint flags far too
   few. The ratio of the two rates of disagreement says which it is. Where all flips end in one large class, as those of
   a careless annotator do, its own rows are the surest and never disagree: there the surest of each class are asked.
   Members that rate the label nearly as high as their first choice speak of ties, and of no wrong label at all.
3. In which order: by margin where flips do not look at the image, by the label's probability alone where they do (an
   unsure image is then suspicious in itself); the same ratio sets the weight of the two orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cassava_kit.calibration import calibrated
from cassava_kit.noise.confident import check_inputs, find_issues, margin, smallest
from cassava_kit.noise.neighbours import nearest, votes
from cassava_kit.noise.restack import evidence_features, geometric_mean, restack

ROUNDS = 2
VOTERS = 8
# The ratio (sure rows' disagreement / all rows') below which flips follow the images, and above which they do not.
FOLLOWS, INDEPENDENT = 0.25, 0.45
BY_CLASS = 0.7  # the same ratio over each predicted class's surest rows: above it flips do not follow the images
SUREST, BELIEVED = 0.35, 0.8  # share of rows by which the two kinds are told apart; largest share that counts as sure
# How near the label comes to the members' first choice, own / (own + first) on average over the disagreements: from the
# first value down they count in full, from the second up they are ties, which is how members err on right labels.
CLEAR, TIED = 0.295, 0.325
PRIOR_ROWS = 20  # weight, in rows, of the overall rate in a class's own
EXPECTED = 1 / 3  # weight of the best expected F1 against the plain disagreements, where flips follow the images
MARGIN_POWER = 3  # the margin's weight in the order is the ratio to this power
# Where flips do not look at the image: the disagreement from which the members' mean weighs in the order as much as
# what was learned from it. The second round improves on good members and overfits weak ones.
WEAK = 0.35


@dataclass(frozen=True)
class Detection:
    """What the labels look like against the evidence.

    `quality` (N,) in 0..1, lowest most suspicious; `flags` (N,) bool; `suggested` (N,), the given label where it is
    not flagged; `pred_probs` (N, K) the evidence in one; `disagreement`, the share of rows whose label is not the
    evidence's; `ratio`, the surest rows' disagreement against that; `independent` 0..1, how far flips look independent
    of the images; `confident` and `disagreeing`, how many confident learning alone flags on the members' mean, and how
    many labels are not its most probable class.
    """

    quality: np.ndarray
    flags: np.ndarray
    suggested: np.ndarray
    pred_probs: np.ndarray
    disagreement: float
    ratio: float
    independent: float
    confident: int
    disagreeing: int

    def __str__(self) -> str:
        found = f"{int(self.flags.sum()):,} of {len(self.flags):,} labels ({self.flags.mean():.1%}) are suspicious"
        if self.disagreeing and not self.flags.any():
            return (
                f"{found}: where the members' first choice is another class, it is hardly likelier than the label, "
                "which is how members err on right labels"
            )
        kind = "not look at the images" if self.independent > 0.5 else "follow the images' ambiguity"
        return (
            f"{found}; the evidence disagrees with {self.disagreement:.1%}, where it is surest with "
            f"{self.ratio * self.disagreement:.1%}: wrong labels would {kind} (weak members' own errors look the same)"
        )


def find_errors(
    labels: np.ndarray, pred_probs: np.ndarray, *, fold: np.ndarray, embedding: np.ndarray | None = None
) -> Detection:
    """Find labels that are probably wrong, from members' out-of-fold probabilities (M, N, K), or one member's (N, K).

    labels (N,); fold (N,); embedding (N, D), of any backbone, of the same rows. Ties go to the earlier row.
    """
    members = pred_probs[None] if pred_probs.ndim == 2 else pred_probs
    for member in members:
        check_inputs(labels, member)
    n_classes = members.shape[2]
    neighbours = None if embedding is None else nearest(embedding)
    parts = [members.mean(axis=0)]
    for _ in range(ROUNDS):
        evidence = geometric_mean(parts)
        doubted = find_issues(labels, evidence)
        features = evidence_features(members, labels, ~doubted, neighbours)
        agrees = evidence.argmax(axis=1) == labels
        learned = [restack(features, labels, fold, keep=k, n_classes=n_classes) for k in (~doubted, agrees)]
        parts = [parts[0], *learned]
    if neighbours is not None:
        heard = votes(neighbours, labels, ~doubted, k=VOTERS, n_classes=n_classes)
        if _accuracy(labels, heard) >= np.mean([_accuracy(labels, member) for member in members]):
            parts.append(heard)
    return decide(labels, parts, fold)


def _accuracy(labels: np.ndarray, pred_probs: np.ndarray) -> float:
    return float((pred_probs.argmax(axis=1) == labels).mean())


def decide(labels: np.ndarray, parts: Sequence[np.ndarray], fold: np.ndarray) -> Detection:
    """Kind, count, order and suggestions from several accounts of the same rows, probabilities (N, K) each.

    The first is the members' mean.
    """
    evidence = geometric_mean(parts)
    disagrees = evidence.argmax(axis=1) != labels
    disagreement = float(disagrees.mean())
    ratio = sure_ratio(evidence, disagrees)
    independent = float(np.clip((ratio - FOLLOWS) / (INDEPENDENT - FOLLOWS), 0, 1))
    n_wrong = independent * independent_count(evidence, disagrees, min(max(ratio, SUREST), BELIEVED))
    n_wrong += (1 - independent) * clearness(labels, parts[0]) * dependent_count(labels, evidence, fold)
    raw = independent * min(disagreement / WEAK, 1) ** 2 + 1 - independent
    weights = [raw, *[1.0] * (len(parts) - 1)] if len(parts) > 1 else [1.0]
    order = suspicion(labels, parts, weights, margin_weight=ratio**MARGIN_POWER)
    flags = np.zeros(len(labels), bool)
    flags[order[: round(n_wrong)]] = True
    own = evidence[np.arange(len(labels)), labels]
    quality = np.empty(len(labels))
    # The order is the finding; the values are the labels' probabilities, so that they can be read as such.
    quality[order] = np.sort(own)
    evidence_without = evidence - np.where(np.arange(evidence.shape[1]) == labels[:, None], 1, 0)
    suggested = np.where(flags, evidence_without.argmax(axis=1), labels)
    return Detection(
        quality=quality,
        flags=flags,
        suggested=suggested,
        pred_probs=evidence,
        disagreement=disagreement,
        ratio=ratio,
        independent=independent,
        confident=int(find_issues(labels, parts[0]).sum()),
        disagreeing=int((parts[0].argmax(axis=1) != labels).sum()),
    )


def suspicion(
    labels: np.ndarray, parts: Sequence[np.ndarray], weights: Sequence[float], *, margin_weight: float
) -> np.ndarray:
    """Rows from most to least suspicious, (N,), by weighted accounts: by margin and by the label's probability."""
    from scipy.stats import rankdata

    own = geometric_mean(parts, weights)[np.arange(len(labels)), labels]
    by_margin = rankdata(margin(labels, np.average(parts, axis=0, weights=weights)))
    return np.argsort(margin_weight * by_margin + (1 - margin_weight) * rankdata(own), kind="stable")


def surest_disagreement(evidence: np.ndarray, disagrees: np.ndarray, share: float) -> float:
    """Share of labels that disagree among the rows with the most confident evidence."""
    n = max(round(share * len(evidence)), 1)
    return float(disagrees[smallest(-evidence.max(axis=1), n)].mean())


def sure_ratio(evidence: np.ndarray, disagrees: np.ndarray) -> float:
    """The surest rows' rate of disagreement against all rows', 0 to 1; that of each class's surest where it decides."""
    disagreement = max(float(disagrees.mean()), 1e-12)
    ratio = min(surest_disagreement(evidence, disagrees, SUREST) / disagreement, 1.0)
    if ratio >= INDEPENDENT:
        return ratio
    top = evidence.argmax(axis=1)
    among = [np.flatnonzero(top == k) for k in np.unique(top)]
    wrong = sum(len(rows) * surest_disagreement(evidence[rows], disagrees[rows], SUREST) for rows in among)
    by_class = min(wrong / len(evidence) / disagreement, 1.0)
    return by_class if by_class > BY_CLASS else ratio


def independent_count(evidence: np.ndarray, disagrees: np.ndarray, share: float) -> float:
    """Wrong labels, if flips do not look at the image: the surest rows' disagreement in each predicted class, for all.

    `share` of the rows count as sure: the fewer errors the members themselves make, the more rows can be believed.
    """
    top, confidence = evidence.argmax(axis=1), evidence.max(axis=1)
    overall = surest_disagreement(evidence, disagrees, share)
    total = 0.0
    for k in np.unique(top):
        rows = np.flatnonzero(top == k)
        sure = rows[smallest(-confidence[rows], round(share * len(rows)))]
        total += len(rows) * (disagrees[sure].sum() + PRIOR_ROWS * overall) / (len(sure) + PRIOR_ROWS)
    return min(total, float(disagrees.sum()))


def clearness(labels: np.ndarray, mean: np.ndarray) -> float:
    """How far the members' mean (N, K) speaks against the labels it disagrees with, 0 (a tie) to 1, on average."""
    first, own = mean.max(axis=1), mean[np.arange(len(labels)), labels]
    against = mean.argmax(axis=1) != labels
    if not against.any():
        return 0.0
    nearness = float((own[against] / (own[against] + first[against])).mean())
    return float(np.clip((TIED - nearness) / (TIED - CLEAR), 0, 1))


def dependent_count(labels: np.ndarray, evidence: np.ndarray, fold: np.ndarray) -> float:
    """Wrong labels, if flips follow the images' ambiguity: between the disagreements and the best expected F1.

    The second takes 1 - p_s for the chance that a label is wrong and flags as many as make the expected F1 largest, at
    most twice the disagreements; it errs to the high side where the members are unsure of right labels.
    """
    disagreements = float((evidence.argmax(axis=1) != labels).sum())
    p = calibrated(labels, evidence, fold, class_wise=False)
    wrong = np.sort(1 - p[np.arange(len(labels)), labels])[::-1]
    expected_f1 = 2 * wrong.cumsum() / (np.arange(1, len(wrong) + 1) + wrong.sum())
    best = int(expected_f1.argmax()) + 1
    return EXPECTED * min(best, 2 * disagreements) + (1 - EXPECTED) * disagreements
