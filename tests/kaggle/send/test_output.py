"""What a kernel that trains left: fetched aside, checked, and only then put among what earlier runs left."""

from __future__ import annotations

from pathlib import Path

import pytest

from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.kernels import find_kernel
from cassava_kit.kaggle.send.output import fetch_output
from cassava_kit.kaggle.send.remote import KaggleError

PAGE = b"<html>503</html>"


class Left:
    """Stands for Kaggle: it leaves these files wherever they are fetched to."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def kernel_output(self, kernel: str, out: Path, pattern: str, *, version: int | None = None) -> None:
        for name, content in {**self.files, "kernel.log": b"log"}.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)


@pytest.fixture
def training(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path / "kit", tmp_path / "weights", tmp_path / "kernel", "", find_kernel("train-folds"))


def fetched(bundle: Bundle, files: dict[str, bytes]) -> Path:
    return fetch_output(Left(files), bundle, "me/train")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "runs/a/fold0/best.safetensors",
        "pretrain-a/backbone.safetensors",
        "runs/a/fold0/config.json",
        "runs/a/oof.csv",
        "folds/kfold5.csv",
    ],
)
def test_an_error_page_in_a_files_place_is_refused(training: Bundle, name: str) -> None:
    whole = {"notes.json": b"{}", "runs/a/metrics.csv": b"epoch\n1\n"}
    assert {path.name for path in fetched(training, whole).rglob("*.*")} == {"notes.json", "metrics.csv", "kernel.log"}
    with pytest.raises(KaggleError, match=f"is damaged: {name}.*fetch it again"):
        fetched(training, whole | {"notes.json": b"[1]", name: PAGE})
    output = training.home / "output-train-folds"
    assert (output / "notes.json").read_bytes() == b"{}" and not (output / name).exists()
    assert not list(training.home.glob(".output*"))


def test_a_run_that_left_nothing_is_not_taken_for_the_one_before(training: Bundle) -> None:
    fetched(training, {"notes.json": b"{}"})
    with pytest.raises(KaggleError, match="left no files"):
        fetched(training, {})


def test_what_earlier_runs_left_stays(training: Bundle) -> None:
    fetched(training, {"runs/a/run.json": b"{}", "notes.json": b"[1]"})
    output = fetched(training, {"runs/b/run.json": b"{}", "notes.json": b"[2]"})
    assert (output / "runs/a/run.json").is_file() and (output / "runs/b/run.json").is_file()
    assert (output / "notes.json").read_bytes() == b"[2]"
