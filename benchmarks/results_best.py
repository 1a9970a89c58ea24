"""How far above the frozen probe within an hour of two CPU cores? Candidates, and what choosing among them is worth."""

from __future__ import annotations

from functools import partial

import numpy as np
from results_members import Made, Member, Shop, probe, train, with_views

from cassava_kit.evidence.calibration import logloss
from cassava_kit.evidence.metrics import accuracy
from cassava_kit.evidence.nested import select_rows
from cassava_kit.evidence.oof import Evidence, average_members, make_evidence
from cassava_kit.settings import replace
from cassava_kit.training.recipes import recipe

EPOCHS = 8
CHOSEN = "chosen for each fold on the others"


def longer(shop: Shop) -> Made:
    """The backbone at its recipe's size, for more epochs than `finetuned`, with its weights averaged as they move."""
    name, weights = shop.plan.weights
    # Seven tenths of the time of single precision, on a processor that has bfloat16.
    config = replace(recipe(name), recipe=LONGER, epochs=EPOCHS, ema=0.98, precision="bf16-mixed")
    return train(shop, config, weights=weights)


def flips_probe(shop: Shop) -> Made:
    """The frozen probe on the mean features of four views, at the recipe's own size."""
    size = recipe(shop.plan.weights[0]).image_size
    return probe(shop, f"probe of flips at {size}", size=size, views="flips")


def mean_of(names: tuple[str, ...], shop: Shop) -> Made:
    """The plain mean of members."""
    evidence = make_evidence([shop.made[name].predictions for name in names], shop.data.folds, names)
    return Made(average_members(evidence, np.full(len(names), 1 / len(names))), 0.0)


LONGER = "longer"
VIEWED, FLIPPED, TURNED = "probe of flips", f"{LONGER}, flips", f"{LONGER}, d4"
CANDIDATES = (
    Member(VIEWED, "frozen backbone at the recipe's size, 4 views' mean features", flips_probe),
    Member(LONGER, f"finetuned at the recipe's size for {EPOCHS} epochs, EMA", longer),
    Member(FLIPPED, "4 views", partial(with_views, LONGER, "flips"), (LONGER,)),
    Member(TURNED, "8 views", partial(with_views, LONGER, "d4"), (LONGER,)),
    Member("probe and longer", "mean of the two", partial(mean_of, (VIEWED, TURNED)), (VIEWED, TURNED)),
)


def chosen_nested(evidence: Evidence) -> tuple[np.ndarray, list[str]]:
    """Probabilities (N, K), each fold's by the member that is best on the other folds; and which that was, by fold.

    Best: most accurate, then least log-loss.
    """
    answers, names = np.zeros_like(evidence.pred_probs[0]), []
    for k in np.unique(evidence.fold):
        out = evidence.fold == k
        known = select_rows(evidence, ~out)
        worth = [(accuracy(known.labels, p).accuracy, -logloss(known.labels, p)) for p in known.pred_probs]
        best = worth.index(max(worth))
        answers[out] = evidence.pred_probs[best, out]
        names.append(evidence.names[best])
    return answers, names
