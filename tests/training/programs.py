"""Trainings as programs of their own, which can be killed."""

from pathlib import Path

from processes import run_python

# No BatchNorm in small_vit: its statistics are of a process's own batch, on a CPU.
SETTINGS = ("epochs=3", "augmentation=none", "image_size=56", "train_pixels=[56,56]", "lr=0.001")


def command(data: Path, folds: Path, out: Path, *more: str, settings: tuple[str, ...] = ()) -> list[str]:
    """A training of small_vit on fold 0."""
    options = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    head = ["-m", "cassava_kit", "train", "small_vit", "--data", str(data), "--folds", str(folds)]
    return [*head, "--fold", "0", "--out", str(out), "--name", "small_vit", *options, *more]


def run(arguments: list[str]) -> None:
    """Run to the end."""
    done = run_python(arguments)
    assert done.returncode == 0, done.stderr[-3000:]
