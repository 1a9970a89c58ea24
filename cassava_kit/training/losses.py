"""Losses for noisy labels: logits (N, K), targets (N,) classes or (N, K) probabilities -> losses (N,); `make_loss`.

A new loss is a function here and a line of `LOSSES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cassava_kit.errors import UserError, closest
from cassava_kit.training.config import RunConfig

Loss = Callable[[Tensor, Tensor], Tensor]


def smooth_targets(targets: Tensor, n_classes: int, smoothing: float) -> Tensor:
    """Targets as probabilities, (N, K), a share `smoothing` of each spread evenly over all classes.

    Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """
    soft = targets if targets.ndim == 2 else F.one_hot(targets, n_classes)
    soft = soft.to(torch.promote_types(soft.dtype, torch.float32)) if soft.is_floating_point() else soft.float()
    return soft * (1 - smoothing) + smoothing / n_classes


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with label smoothing; torch's own."""
    return F.cross_entropy(_at_least_float(logits), targets, label_smoothing=smoothing, reduction="none")


def focal(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss -(1 - p)^gamma log p. Lin et al. 2017, equation 4."""
    log_p = F.log_softmax(_at_least_float(logits), dim=1).gather(1, targets[:, None]).squeeze(1)
    one_minus_p = -torch.expm1(log_p)
    return -(one_minus_p.clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma * log_p)


def taylor_cross_entropy(logits: Tensor, targets: Tensor, order: float = 2) -> Tensor:
    """Taylor cross-entropy sum_{i=1..order} (1 - p)^i / i. Feng et al. 2020, equation 7."""
    if order < 1 or order != int(order):
        raise UserError(f"order must be a whole number of at least 1, got {order}")
    p = F.softmax(_at_least_float(logits), dim=1).gather(1, targets[:, None]).squeeze(1)
    terms = [(1 - p) ** i / i for i in range(1, int(order) + 1)]
    return torch.stack(terms).sum(dim=0)


def symmetric_cross_entropy(
    logits: Tensor, targets: Tensor, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0
) -> Tensor:
    """Symmetric cross-entropy alpha CE + beta RCE, log 0 taken as `log_zero`. Wang et al. 2019, equations 5 and 6."""
    logits = _at_least_float(logits)
    p = F.softmax(logits, dim=1).gather(1, targets[:, None]).squeeze(1)
    return alpha * F.cross_entropy(logits, targets, reduction="none") + beta * -log_zero * (1 - p)


def bi_tempered(
    logits: Tensor, targets: Tensor, t1: float = 0.8, t2: float = 1.4, smoothing: float = 0.0, steps: int = 20
) -> Tensor:
    """Bi-tempered logistic loss. Amid et al. 2019, equation 8; t1 = t2 = 1 is the cross-entropy.

    Raises:
        UserError: Not t1 <= 1 <= t2: elsewhere the loss is unbounded or the normaliser has no fixed point.
    """
    if not t1 <= 1 <= t2:
        raise UserError(f"bi-tempered loss needs t1 <= 1 <= t2, got t1={t1}, t2={t2}")
    logits = _at_least_float(logits)
    soft = smooth_targets(targets, logits.shape[1], smoothing).to(logits.dtype)
    p = tempered_softmax(logits, t2, steps)
    log_ratio = log_t(soft, t1) - log_t(p, t1)
    return (soft * log_ratio - (soft ** (2 - t1) - p ** (2 - t1)) / (2 - t1)).sum(dim=1)


def log_t(x: Tensor, t: float) -> Tensor:
    """Tempered logarithm (x^(1-t) - 1) / (1 - t), finite at 0."""
    x = x.clamp_min(torch.finfo(x.dtype).tiny)
    return x.log() if t == 1 else (x ** (1 - t) - 1) / (1 - t)


def exp_t(x: Tensor, t: float) -> Tensor:
    """Tempered exponential (1 + (1 - t) x)^(1 / (1 - t)) for t > 1 and x <= 0, where it needs no clipping."""
    return (1 + (1 - t) * x) ** (1 / (1 - t))


def tempered_softmax(logits: Tensor, t: float, steps: int = 20) -> Tensor:
    """Heavy-tailed softmax exp_t(a - lambda(a)) whose rows sum to 1, t >= 1. Amid et al. 2019, algorithm 1."""
    if t == 1:
        return F.softmax(logits, dim=1)
    top = logits.max(dim=1, keepdim=True).values
    shifted = logits - top
    normalised = shifted
    for _ in range(steps):
        total = exp_t(normalised, t).sum(dim=1, keepdim=True)
        normalised = shifted * total ** (1 - t)
    total = exp_t(normalised, t).sum(dim=1, keepdim=True)
    return exp_t(normalised, t) / total


# By the name that a recipe gives. A loss with a parameter `smoothing` takes label smoothing and soft targets.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "bitempered": bi_tempered,
    "taylor": taylor_cross_entropy,
    "symmetric": symmetric_cross_entropy,
    "focal": focal,
}


def make_loss(config: RunConfig) -> Loss:
    """Return the loss of a configuration, bound to its parameters: logits (B, K), targets -> losses (B,).

    Raises:
        UserError: There is no such loss, or it does not take the configuration's parameters, smoothing or mixing.
    """
    name = config.loss
    if name not in LOSSES:
        raise UserError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}{closest(name, LOSSES)}")
    parameters = inspect.signature(LOSSES[name]).parameters
    known = [each for each in parameters if each not in ("logits", "targets", "smoothing", "steps")]
    unknown = set(config.loss_args) - set(known)
    if unknown:
        raise UserError(
            f"loss {name} has no parameter {', '.join(sorted(unknown))}; it has {', '.join(known) or 'none'}"
        )
    soft = [each for each, loss in LOSSES.items() if "smoothing" in inspect.signature(loss).parameters]
    if name not in soft and config.label_smoothing:
        raise UserError(f"label_smoothing goes with the losses {' and '.join(soft)}; set label_smoothing=0 for {name}")
    if name not in soft and (config.mixup or config.cutmix):
        raise UserError(f"mixup and cutmix make soft targets, which the loss {name} does not take")
    smoothing = {"smoothing": config.label_smoothing} if name in soft else {}
    loss = partial(LOSSES[name], **config.loss_args, **smoothing)
    loss(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long))  # values that it cannot take are refused here
    return loss


def _at_least_float(logits: Tensor) -> Tensor:
    """Half-precision logits as float32: the sums and powers of these losses leave fp16's range."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def mean_without_largest(losses: Tensor, n: int, *, weights: Tensor | None = None) -> Tensor:
    """Return the mean of a batch's losses (B,) without its n largest (OUSM, Xu et al. 2019); one is always left.

    With weights (B,) the losses that are left count by them; which are the largest is judged without.
    """
    kept = losses.topk(max(len(losses) - n, 1), largest=False)
    return kept.values.mean() if weights is None else (kept.values * weights[kept.indices]).mean()
