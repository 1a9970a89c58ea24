"""Losses against the formulas of their papers, written out slowly, and against torch."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cassava_kit.errors import UserError
from cassava_kit.training.config import RunConfig
from cassava_kit.training.losses import (
    bi_tempered,
    cross_entropy,
    focal,
    make_loss,
    symmetric_cross_entropy,
    taylor_cross_entropy,
    tempered_softmax,
)

ALL = ("ce", "bitempered", "taylor", "symmetric", "focal")


def config(loss: str, **changes) -> RunConfig:
    smoothing = 0.1 if loss in ("ce", "bitempered") else 0.0
    return RunConfig(recipe="r", model="m", loss=loss, label_smoothing=smoothing, **changes)


def batch(n: int = 64, k: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, k, generator=generator, dtype=torch.float64) * 3, torch.randint(k, (n,), generator=generator)


def softmax_rows(logits: torch.Tensor) -> list[list[float]]:
    rows = logits.tolist()
    return [[math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in rows]


def test_label_smoothing_is_cross_entropy_against_the_spread_target():
    logits, targets = batch()
    total = 0.0
    for p, label in zip(softmax_rows(logits), targets.tolist(), strict=True):
        total -= sum((0.8 * (k == label) + 0.2 / 5) * math.log(p[k]) for k in range(5))
    assert cross_entropy(logits, targets, 0.2).mean().item() == pytest.approx(total / len(targets), abs=1e-12)


def test_focal_is_its_formula():
    logits, targets = batch()
    terms = [-((1 - p[y]) ** 2) * math.log(p[y]) for p, y in zip(softmax_rows(logits), targets.tolist(), strict=True)]
    assert focal(logits, targets).mean().item() == pytest.approx(np.mean(terms), abs=1e-12)


def test_taylor_is_its_formula_and_nears_cross_entropy():
    logits, targets = batch()
    p = [row[y] for row, y in zip(softmax_rows(logits), targets.tolist(), strict=True)]
    expected = np.mean([(1 - q) + (1 - q) ** 2 / 2 for q in p])
    assert taylor_cross_entropy(logits, targets, 2).mean().item() == pytest.approx(expected, abs=1e-12)
    near = taylor_cross_entropy(logits / 10, targets, 200)
    assert near.mean().item() == pytest.approx(F.cross_entropy(logits / 10, targets).item(), abs=1e-6)


def test_symmetric_is_its_formula():
    logits, targets = batch()
    terms = []
    for p, y in zip(softmax_rows(logits), targets.tolist(), strict=True):
        reverse = -sum(p[k] * (0.0 if k == y else -4.0) for k in range(5))
        terms.append(0.1 * -math.log(p[y]) + 1.0 * reverse)
    assert symmetric_cross_entropy(logits, targets).mean().item() == pytest.approx(np.mean(terms), abs=1e-12)


def test_tempered_softmax_solves_its_equation():
    logits, _ = batch()
    p = tempered_softmax(logits, 1.4, steps=200)
    assert torch.allclose(p.sum(dim=1), torch.ones(len(p), dtype=p.dtype), atol=1e-12)
    # exp_t(a - lambda) with one lambda a row: the tempered logarithms differ from the logits by a constant.
    constant = (p ** (1 - 1.4) - 1) / (1 - 1.4) - logits
    assert (constant.max(dim=1).values - constant.min(dim=1).values).max() < 1e-9


def test_bi_tempered_is_its_formula_and_has_cross_entropy_as_its_limit():
    logits, targets = batch()
    p = tempered_softmax(logits, 1.4, steps=200)
    expected = 0.0
    for row, y in zip(p.tolist(), targets.tolist(), strict=True):
        log_t = [(q**0.2 - 1) / 0.2 for q in row]
        expected += sum((k == y) * (0.0 - log_t[k]) - ((k == y) - row[k] ** 1.2) / 1.2 for k in range(5))
    assert bi_tempered(logits, targets, 0.8, 1.4, steps=200).mean().item() == pytest.approx(expected / len(p), abs=1e-9)
    assert bi_tempered(logits, targets, 1.0, 1.0).mean().item() == pytest.approx(
        F.cross_entropy(logits, targets).item(), abs=1e-9
    )


def test_bi_tempered_refuses_temperatures_without_meaning():
    logits, targets = batch()
    with pytest.raises(ValueError, match="t1 <= 1 <= t2"):
        bi_tempered(logits, targets, 1.2, 1.4)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_loss_and_gradient_are_finite_at_extreme_logits(loss, dtype):
    for sign in (1, -1):
        logits = (torch.eye(5) * 1e4 * sign).to(dtype).requires_grad_()
        for targets in (torch.arange(5), torch.arange(5).roll(1)):
            logits.grad = None
            value = make_loss(config(loss))(logits, targets).mean()
            value.backward()
            assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", ALL)
def test_each_row_has_its_own_loss(loss):
    logits, targets = batch()
    whole = make_loss(config(loss))(logits, targets)
    assert whole.shape == (64,)
    assert torch.allclose(whole[3:5], make_loss(config(loss))(logits[3:5], targets[3:5]))


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_is_finite_and_the_same_under_autocast(loss, dtype):
    logits, targets = batch()
    weight = torch.eye(5, requires_grad=True)
    with torch.autocast("cpu", dtype):
        value = make_loss(config(loss))((logits.float() * 100) @ weight, targets).mean()
    value.backward()
    exact = make_loss(config(loss))((logits.float() * 100).to(dtype), targets).mean()
    assert torch.isfinite(weight.grad).all()
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("loss", ALL)
def test_gradient_points_to_the_label(loss):
    logits = torch.zeros(4, 5, requires_grad=True)
    make_loss(config(loss))(logits, torch.tensor([0, 1, 2, 3])).mean().backward()
    assert (logits.grad.argmin(dim=1) == torch.tensor([0, 1, 2, 3])).all()


@pytest.mark.parametrize(("loss", "arguments"), [("bitempered", {"t1": 1.2}), ("taylor", {"order": 1.5})])
def test_arguments_that_a_loss_does_not_take_are_refused_as_it_is_made(loss, arguments):
    with pytest.raises(ValueError, match=r"t1 <= 1 <= t2|order must be a whole number"):
        make_loss(config(loss, loss_args=arguments))


def test_soft_targets_go_through_cross_entropy():
    logits, targets = batch()
    soft = F.one_hot(targets, 5).double()
    assert torch.allclose(make_loss(config("ce"))(logits, soft), make_loss(config("ce"))(logits, targets))
    assert torch.allclose(
        make_loss(config("bitempered"))(logits, soft), make_loss(config("bitempered"))(logits, targets)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "focl"}, r"loss must be one of ce, bitempered, .*, got 'focl' \(did you mean focal\?\)"),
        ({"loss": "focal"}, "label_smoothing goes with the losses ce and bitempered; set label_smoothing=0 for focal"),
        ({"loss": "taylor", "label_smoothing": 0, "mixup": 0.2}, "soft targets, which the loss taylor does not take"),
        ({"loss": "symmetric", "label_smoothing": 0, "cutmix": 1.0}, "soft targets"),
    ],
)
def test_a_loss_that_does_not_take_the_settings_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_loss(RunConfig(recipe="r", model="m", **changes))


def test_smoothing_is_spread_over_all_classes_also_in_bi_tempered():
    logits, targets = batch()
    p = tempered_softmax(logits, 1.4, steps=200)
    expected = 0.0
    for row, y in zip(p.tolist(), targets.tolist(), strict=True):
        for k, q in enumerate(row):
            aim = 0.7 * (k == y) + 0.3 / 5
            expected += aim * ((aim**0.2 - 1) / 0.2 - (q**0.2 - 1) / 0.2) - (aim**1.2 - q**1.2) / 1.2
    loss = make_loss(RunConfig(recipe="r", model="m", loss="bitempered", label_smoothing=0.3))
    assert loss(logits, targets).mean().item() == pytest.approx(expected / len(p), abs=1e-6)


def test_unknown_parameter_of_a_loss_is_refused():
    with pytest.raises(ValueError, match="has no parameter gama; it has gamma"):
        make_loss(config("focal", loss_args={"gama": 2}))
    logits, targets = batch()
    assert make_loss(config("focal", loss_args={"gamma": 0}))(logits, targets).mean().item() == pytest.approx(
        F.cross_entropy(logits, targets).item()
    )
