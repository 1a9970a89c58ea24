"""How far above the frozen probe within an hour of two CPU cores? Candidates, and what choosing among them is worth."""

from __future__ import annotations

from functools import partial

import numpy as np
from results_members import FINETUNED, Made, Member, Shop, finetuned, finetuned_config, probe, with_views

from cassava_kit.blend import rows
from cassava_kit.calibration import logloss
from cassava_kit.oof import Evidence, accuracy, average, gather

LARGER = 1.5
GENTLE = "gentle"
CHOSEN = "chosen for each fold on the others"


def gentle(shop: Shop, name: str = GENTLE, augmentation: str = "light") -> Made:
    """Finetuned larger and longer, the backbone at a tenth of the head's rate, the weights averaged as they move."""
    config = finetuned_config(shop)
    pixels = config.train_pixels and tuple(round(LARGER * side) for side in config.train_pixels)
    size = round(LARGER * config.image_size)
    slow = {"backbone_lr_scale": 0.1, "ema": 0.98, "epochs": config.epochs + 2}
    return finetuned(shop, name, image_size=size, train_pixels=pixels, augmentation=augmentation, **slow)


def mean_of(names: tuple[str, ...], shop: Shop) -> Made:
    """The plain mean of members."""
    evidence = gather([shop.made[name].predictions for name in names], shop.data.folds, names)
    return Made(average(evidence, np.full(len(names), 1 / len(names))), 0.0)


def flips_probe(scales: tuple[float, ...], shop: Shop) -> Made:
    """The frozen probe on the mean features of four views, at one size or at several side by side."""
    sizes = [round(scale * finetuned_config(shop).image_size) for scale in scales]
    return probe(shop, f"probe of flips at {' and '.join(map(str, sizes))}", sizes=sizes, views="flips")


STRONG = "gentle-strong"
PROBE_1, PROBE_2, FLIPPED = "probe of flips", "probe of flips, two sizes", f"{GENTLE}, flips"
CANDIDATES = (
    Member(PROBE_1, "frozen backbone, 4 views' mean features at 2 x the size", partial(flips_probe, (2.0,))),
    Member(PROBE_2, "the same at 1.25 and 2 x the size, side by side", partial(flips_probe, (1.25, 2.0))),
    Member(GENTLE, "finetuned at 1.5 x the size, backbone's rate a tenth, EMA, 2 more epochs", gentle),
    Member(STRONG, "the same, strong augmentation", partial(gentle, name=STRONG, augmentation="strong")),
    Member(FLIPPED, "4 views", partial(with_views, GENTLE, "flips"), (GENTLE,)),
    Member("probe and gentle", "mean of the two", partial(mean_of, (PROBE_2, FLIPPED)), (PROBE_2, FLIPPED)),
    Member("probe and finetuned", "mean of the two", partial(mean_of, (PROBE_2, FINETUNED)), (PROBE_2, FINETUNED)),
)  # fmt: skip


def chosen_nested(evidence: Evidence) -> tuple[np.ndarray, list[str]]:
    """Probabilities (N, K), each fold's by the member that is best on the other folds; and which that was, by fold.

    Best: most accurate, then least log-loss.
    """
    answers, names = np.zeros_like(evidence.pred_probs[0]), []
    for k in np.unique(evidence.fold):
        out = evidence.fold == k
        known = rows(evidence, ~out)
        worth = [(accuracy(known.labels, p).accuracy, -logloss(known.labels, p)) for p in known.pred_probs]
        best = worth.index(max(worth))
        answers[out] = evidence.pred_probs[best, out]
        names.append(evidence.names[best])
    return answers, names
