"""Baseline for every model: logistic regression on small pixels, out of fold; start at `train_baseline`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cassava_kit.data.folds import TEST
from cassava_kit.data.images import ImageError, decode_small, in_threads, read_bytes, resize
from cassava_kit.data.progress import track
from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import Score, accuracy, score, score_record
from cassava_kit.evidence.oof import fold_predictions, join_folds
from cassava_kit.evidence.predictions import Predictions, write_predictions
from cassava_kit.files import CONFIG_FILE, DONE_FILE, OOF_FILE, header_path, read_json, write_json
from cassava_kit.training.sources import learning_code_hash

if TYPE_CHECKING:
    from cassava_kit.training.rows import TrainData

BASELINE_ROOTS = (("training.baseline", "read_pixels"), ("training.baseline", "predict_fold"))


@dataclass(frozen=True)
class LogReg:
    """Settings of the baseline: images of `image_size` squared, pixels standardised, inverse penalty `c`.

    Strongly penalised, because an image has 3,072 numbers: .01 scores less on 1,200 drawn and on 899 real images.
    """

    recipe: str = "logreg"
    about: str = "Logistic regression on 32x32 pixels (scikit-learn): what colour and layout alone tell."
    model: str = "logistic regression"
    image_size: int = 32
    c: float = 1e-3
    max_iter: int = 300


def train_baseline(
    data: TrainData,
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    progress: bool = True,
    replace: bool = False,
) -> Score:
    """Train on all folds but one, for each of `folds` (default: all), and return the score on the rows of those folds.

    Writes `out/logreg/fold<k>/` (config.json, oof.csv, run.json) and, of all folds, `out/logreg/oof.csv`: the same
    bytes for the same images, table, split and libraries (run.json's time aside). An unreadable image is not trained
    on, and is answered with the training rows' class shares.

    Raises:
        UserError: The fold file is of another table, no image can be read, or a finished run of other folds, images or
            settings would be replaced (unless `replace`).
    """
    from cassava_kit.training.checks import check_table

    settings = LogReg()
    numbers = list(range(data.folds.n_splits)) if folds is None else [data.folds.check_fold(k) for k in folds]
    check_table(data)
    run_dir, wanted = out / settings.recipe, baseline_fingerprint(settings, data)
    for k in numbers:
        check_existing(run_dir / f"fold{k}", wanted, replace=replace)
    started = time.perf_counter()
    pixels, readable = read_pixels(data.paths(data.folds.frame), settings.image_size, progress=progress)
    if not readable.any():
        raise UserError(f"no readable training image in {data.table.image_dir}; check the download")
    reading = time.perf_counter() - started
    for name in (OOF_FILE, header_path(OOF_FILE)):  # joined from folds that are written anew
        (run_dir / name).unlink(missing_ok=True)
    parts = []
    for k in track(numbers, "Fitting folds", show=progress):
        started = time.perf_counter()
        probabilities = predict_fold(pixels, readable, data, k, settings=settings)
        facts = {"fingerprint": wanted, "seconds": time.perf_counter() - started + reading / len(numbers)}
        parts.append(
            write_fold(data, k, probabilities, run_dir=run_dir / f"fold{k}", config=asdict(settings), facts=facts)
        )
    if len(numbers) == data.folds.n_splits:
        write_predictions(run_dir / OOF_FILE, join_folds(parts, data.folds, settings.recipe))
    labels = np.concatenate([data.folds.validation(k)["label"] for k in numbers])
    return score(labels, np.concatenate([part.probabilities for part in parts]), data.competition.metric)


def baseline_fingerprint(settings: LogReg, data: TrainData) -> dict[str, str]:
    """Return what decides the baseline's predictions, by what the user calls it."""
    return {
        "settings": ", ".join(f"{name}={value}" for name, value in asdict(settings).items() if name != "about"),
        "folds": data.folds.hash,
        "images": data.images_hash,
        "code": learning_code_hash(roots=BASELINE_ROOTS),
    }


def check_existing(run_dir: Path, wanted: dict[str, str], *, replace: bool) -> None:
    """Refuse to write over a finished run that differs (UserError), unless `replace`."""
    if replace or not (run_dir / DONE_FILE).is_file():
        return
    known = read_json(run_dir / DONE_FILE).get("fingerprint") or {}
    differs = [part for part in wanted if known.get(part) != wanted[part]]
    if differs == ["code"]:
        raise UserError(
            f"{run_dir} was trained by another version of the code; give another --out, or replace it with --replace"
        )
    if differs:
        raise UserError(
            f"{run_dir} holds a finished run with other {', '.join(differs)}; give another --out, or replace it with "
            "--replace"
        )


def read_pixels(paths: Sequence[Path], side: int, *, progress: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return small images, (N, side * side * 3) uint8, and which could be read, (N,) bool; the others are black."""

    def one(path: Path) -> np.ndarray | None:
        try:
            return resize(decode_small(read_bytes(path), side, most=2), (side, side)).ravel()
        except ImageError:
            return None

    pixels = np.zeros((len(paths), side * side * 3), np.uint8)
    readable = np.zeros(len(paths), bool)
    for n, image in enumerate(in_threads(one, paths, title="Reading small images", progress=progress)):
        if image is not None:
            pixels[n], readable[n] = image, True
    return pixels, readable


def predict_fold(
    pixels: np.ndarray, readable: np.ndarray, data: TrainData, fold: int, *, settings: LogReg
) -> np.ndarray:
    """Return probabilities (n, K) of a fold's rows by a model of the other folds' readable rows."""
    labels, fold_of = data.folds.frame["label"].to_numpy(), data.folds.frame["fold"].to_numpy()
    held_out = fold_of == fold
    others = ~held_out & (fold_of != TEST)
    training = others & readable
    shares = np.bincount(labels[others], minlength=data.competition.n_classes) / others.sum()
    probabilities = np.tile(shares, (held_out.sum(), 1))
    seen = np.unique(labels[training])
    if len(seen) < 2:
        return probabilities  # logistic regression needs two classes
    model = make_model(settings).fit(pixels[training].astype(np.float32), labels[training])
    known = readable[held_out]
    if known.any():
        answer = np.zeros((known.sum(), data.competition.n_classes))
        answer[:, seen] = model.predict_proba(pixels[held_out & readable].astype(np.float32))
        probabilities[known] = answer
    return probabilities


def make_model(settings: LogReg) -> Any:
    """Return scikit-learn's pipeline: standardised pixels, multinomial logistic regression (L-BFGS, deterministic)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=settings.c, max_iter=settings.max_iter))


def write_fold(
    data: TrainData,
    fold: int,
    probabilities: np.ndarray,
    *,
    run_dir: Path,
    config: dict[str, Any],
    facts: dict[str, Any],
) -> Predictions:
    """Write the folder of a fold as a recipe's run does, without weights; `run.json` comes last."""
    (run_dir / DONE_FILE).unlink(missing_ok=True)
    part = fold_predictions(data.folds, fold, probabilities, f"{config['recipe']}-fold{fold}")
    right = accuracy(data.folds.validation(fold)["label"].to_numpy(), probabilities)
    write_json(run_dir / CONFIG_FILE, config)
    write_predictions(run_dir / OOF_FILE, part)
    write_json(run_dir / DONE_FILE, {**score_record(right), **facts})
    return part
