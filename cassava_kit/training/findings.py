"""Findings on a run from its own metrics, in plain words: `diagnose`, `not_finite`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

ONE_CLASS_SHARE = 0.95
ONE_CLASS_EPOCHS = 5
FLAT_EPOCHS = 5
FLAT_RATIO = 0.01
GAP_EPOCHS = 3


def diagnose(epochs: Sequence[Mapping[str, float]], classes: Sequence[str], *, last: bool = False) -> dict[str, str]:
    """Return findings by key after the last of `epochs`: rows of `metrics.csv` (train_loss, val_loss, val_share_k ...).

    `last`: no epoch will follow, so a run with fewer epochs than a finding needs is judged by the epochs it has.
    Keys are stable (`one_class`, `flat`, `overfit`), so that a caller can say each only once.
    """
    findings = {}
    recent = [_top_class(row, len(classes)) for row in epochs[-ONE_CLASS_EPOCHS:]]
    top, share = recent[-1]
    judged = last or len(recent) == ONE_CLASS_EPOCHS
    when = f"{len(recent)} epochs in a row" if len(recent) > 1 else "after its only epoch"
    if judged and all(k == top and s >= ONE_CLASS_SHARE for k, s in recent):
        findings["one_class"] = (
            f"predicts {classes[top]} for {share:.0%} of the validation images, "
            f"{when}: lr too high or too low? backbone frozen or random? rows not shuffled?"
        )
    losses = [row["train_loss"] for row in epochs[-FLAT_EPOCHS:]]
    if len(losses) == FLAT_EPOCHS and max(losses) - min(losses) < FLAT_RATIO * max(losses):
        findings["flat"] = (
            f"the training loss has not moved for {FLAT_EPOCHS} epochs: lr too low, or all weights frozen?"
        )
    if _parts(epochs):
        findings["overfit"] = (
            f"validation loss has risen for {GAP_EPOCHS} epochs while training loss fell: "
            "stronger augmentation, fewer epochs, or early_stopping?"
        )
    return findings


def not_finite(*, precision: str, first: bool) -> str:
    """Return the finding on a loss that is not finite; `first`: it is the first batch's, before any step was taken."""
    half = "fp16 overflowed? set precision=bf16-mixed or 32-true" if precision.startswith("16") else ""
    if first:
        cause = "the initial weights or the images? check the weights file, and the model's mean and std"
    else:
        cause = "lr too high, or the data? lower lr, and check the images"
    return f"the loss is not finite: {'; or '.join(filter(None, (half, cause)))}"


def _top_class(row: Mapping[str, float], n_classes: int) -> tuple[int, float]:
    """Return the class predicted most often, and its share."""
    return max(((k, row[f"val_share_{k}"]) for k in range(n_classes)), key=lambda item: item[1])


def _parts(epochs: Sequence[Mapping[str, float]]) -> bool:
    """Return whether training loss fell and validation loss rose for `GAP_EPOCHS` epochs in a row."""
    tail = epochs[-GAP_EPOCHS - 1 :]
    pairs = list(pairwise(tail))
    return len(pairs) == GAP_EPOCHS and all(
        later["val_loss"] > earlier["val_loss"] and later["train_loss"] < earlier["train_loss"]
        for earlier, later in pairs
    )
