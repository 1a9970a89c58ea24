"""The doctor speaks when there is reason to, and only then."""

from cassava_kit.training.findings import diagnose, not_finite

CLASSES = ("a", "b")


def row(train: float, val: float, share: float = 0.5) -> dict[str, float]:
    return {"train_loss": train, "val_loss": val, "val_share_0": share, "val_share_1": 1 - share}


def test_a_healthy_run_is_left_in_peace():
    epochs = [row(1 / (k + 1), 1.1 / (k + 1)) for k in range(10)]
    assert all(diagnose(epochs[: k + 1], CLASSES) == {} for k in range(10))


def test_one_class_is_told_after_five_epochs_not_at_the_start():
    epochs = [row(1 - k / 10, 1 - k / 10, share=0.03) for k in range(5)]
    assert diagnose(epochs[:4], CLASSES) == {}
    found = diagnose(epochs, CLASSES)
    assert list(found) == ["one_class"] and "predicts b for 97%" in found["one_class"]


def test_a_short_run_is_judged_at_its_end():
    epochs = [row(1 - k / 10, 1 - k / 10, share=0.03) for k in range(2)]
    assert "2 epochs in a row" in diagnose(epochs, CLASSES, last=True)["one_class"]
    assert diagnose([row(1.0, 1.0)], CLASSES, last=True) == {}


def test_changing_sides_is_not_one_class():
    epochs = [row(1.0 - k / 10, 1.0 - k / 10, float(k % 2)) for k in range(5)]
    assert diagnose(epochs, CLASSES) == {}


def test_a_loss_that_is_not_finite_has_another_cause_before_the_first_step_and_in_half_precision():
    assert "lr too high" in not_finite(precision="32-true", first=False)
    assert "fp16" not in not_finite(precision="bf16-mixed", first=False)
    assert "fp16 overflowed? set precision=bf16-mixed" in not_finite(precision="16-mixed", first=False)
    first = not_finite(precision="32-true", first=True)
    assert "initial weights" in first and "lr" not in first


def test_flat_loss_is_told():
    epochs = [row(1.6 - 0.001 * k, 1.6) for k in range(5)]
    assert list(diagnose(epochs, CLASSES)) == ["flat"]


def test_losses_that_part_are_told():
    epochs = [row(1.0 - 0.2 * k, 0.5 + 0.1 * k) for k in range(4)]
    assert list(diagnose(epochs, CLASSES)) == ["overfit"]
    assert diagnose(epochs[:3], CLASSES) == {}
