"""Wrong labels that `clean` finds, and what leaving them out is worth; entry point `main`.

Wrong labels of two kinds are planted at known places: class-conditional (any image, to a class drawn from a random row
of a transition matrix) and instance-dependent (images chosen by their ambiguity for a model of the clean labels, to a
class it confuses them with). Members are predicted out of fold on the given labels. cleanlab does the finding; what is
measured here is what the kit makes of it: the mean of the members, the order, the caps, the actions.

    python benchmarks/bench_noise.py [--seeds 5] [--part digits photos simulated worth]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cassava_kit.evidence.noise.decisions import apply_noise_report, make_noise_report
from cassava_kit.evidence.noise.detect import detect_errors
from cassava_kit.files import atomic_path, sha256_bytes, sha256_file

SHARES = np.array([1087, 2189, 2386, 13158, 2577]) / 21397
K = len(SHARES)
KINDS, RATES = ("class", "instance"), (0.09, 0.18)
REAL = Path(os.environ.get("CASSAVA_KIT_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")


class Planted(NamedTuple):
    """True and given labels (N,), folds (N,), members' out-of-fold probabilities (M, N, K), an embedding or None."""

    true: np.ndarray
    given: np.ndarray
    fold: np.ndarray
    members: np.ndarray
    embedding: np.ndarray | None


# Planting


def plant(true: np.ndarray, rate: float, kind: str, *, ambiguity: np.ndarray, seed: int) -> np.ndarray:
    """Given labels: `rate` of the rows made wrong; ambiguity (N, K) is a clean model's probabilities."""
    rng = np.random.default_rng(seed)
    n = np.arange(len(true))
    if kind == "class":
        target = rng.dirichlet(np.ones(K), K) * (1 - np.eye(K))
        target, chance = target[true], np.ones(len(true))
    else:
        target = ambiguity + 1e-4
        target[n, true] = 0
        chance = target.max(axis=1) / ambiguity.max(axis=1)
    wrong = rng.choice(len(true), round(rate * len(true)), replace=False, p=chance / chance.sum())
    given = true.copy()
    given[wrong] = [rng.choice(K, p=target[i] / target[i].sum()) for i in wrong]
    return given


def folds_of(labels: np.ndarray, seed: int) -> np.ndarray:
    """Five stratified folds, (N,)."""
    fold = np.zeros(len(labels), int)
    for k, (_, rows) in enumerate(StratifiedKFold(5, shuffle=True, random_state=seed).split(labels, labels)):
        fold[rows] = k
    return fold


def out_of_fold(
    x: np.ndarray, labels: np.ndarray, fold: np.ndarray, models: Sequence[Any], keep: np.ndarray
) -> np.ndarray:
    """Members' probabilities (M, N, K); each fold is predicted by models of the other folds' kept rows."""
    p = np.zeros((len(models), len(labels), K))
    for k in np.unique(fold):
        out, rows = fold == k, (fold != k) & keep
        for m, model in enumerate(models):
            fitted = clone(model).fit(x[rows], labels[rows])
            p[m][np.ix_(out, fitted.classes_)] = fitted.predict_proba(x[out])
    return p


# The three tables


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits as five classes with this competition's shares: one digit each, and six for class 3."""
    x, digit = load_digits(return_X_y=True)
    label = np.select([digit == 8, digit == 1, digit == 2, digit == 9], [0, 1, 2, 4], 3)
    rng = np.random.default_rng(0)
    total = (label == 3).sum() / SHARES[3]
    rows = [rng.permutation(np.flatnonzero(label == k))[: round(SHARES[k] * total)] for k in range(K)]
    rows = rng.permutation(np.concatenate(rows))
    return x[rows] / 16, label[rows]


def digit_members(seed: int) -> list[Any]:
    """Four models of different families."""
    return [
        make_pipeline(StandardScaler(with_std=False), LogisticRegression(C=0.3, max_iter=200)),
        ExtraTreesClassifier(100, min_samples_leaf=2, random_state=seed),
        KNeighborsClassifier(10, weights="distance"),
        MLPClassifier((64,), alpha=0.3, max_iter=40, random_state=seed),
    ]


def photographs() -> tuple[np.ndarray, np.ndarray] | None:
    """ImageNet features of the real photographs and their own (noisy) labels, or None where they are not there.

    The features are kept in the folder for temporary files, under the hash of the table and the weights.
    """
    folder, weights = REAL / "cassava", REAL / "weights" / "mobilenetv2_100_in1k.pth"
    if not folder.is_dir() or not weights.is_file():
        return None
    table = pd.read_csv(folder / "train.csv")
    key = sha256_bytes((sha256_file(folder / "train.csv") + sha256_file(weights)).encode())[:16]
    kept = Path(tempfile.gettempdir()) / "cassava_kit_bench" / f"photo-features-{key}.npy"
    if kept.is_file():
        features = np.load(kept, allow_pickle=False)
    else:
        features = photo_features([folder / "train_images" / name for name in table["image_id"]], weights)
        with atomic_path(kept) as temporary, temporary.open("wb") as file:
            np.save(file, features)
    scaled = StandardScaler().fit_transform(np.sqrt(np.maximum(features, 0)))
    return PCA(128, random_state=0).fit_transform(scaled), table["label"].to_numpy()


def photo_features(paths: Sequence[Path], weights: Path) -> np.ndarray:
    """MobileNetV2's pooled features (N, 1280) at 192 x 256, the mean of a photograph and its mirror image."""
    import timm
    import torch

    from cassava_kit.data.images import load_image

    model = timm.create_model("mobilenetv2_100", pad_type="same", pretrained=False)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.reset_classifier(0)
    model.eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = []
    with torch.inference_mode():
        for start in range(0, len(paths), 16):
            pixels = np.stack([load_image(path, (192, 256)) for path in paths[start : start + 16]])
            batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
            features.append(((model(batch) + model(batch.flip(3))) / 2).numpy())
    return np.concatenate(features)


def photo_members(seed: int) -> list[Any]:
    """Four heads on frozen features."""
    return [
        LogisticRegression(C=0.001, max_iter=200),
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.7),
        KNeighborsClassifier(15, weights="distance", metric="cosine"),
        RandomForestClassifier(60, min_samples_leaf=3, random_state=seed),
    ]


def planted_on(
    x: np.ndarray, y: np.ndarray, models: Callable[[int], list[Any]]
) -> Callable[[str, float, int], Planted]:
    """A function (kind, rate, seed) -> Planted over these rows; the embedding is x itself."""
    everything = np.ones(len(y), bool)
    ambiguity = out_of_fold(x, y, folds_of(y, 99), models(99), everything).mean(axis=0)

    def make(kind: str, rate: float, seed: int) -> Planted:
        given = plant(y, rate, kind, ambiguity=ambiguity, seed=seed) if rate else y
        fold = folds_of(given, seed)
        return Planted(y, given, fold, out_of_fold(x, given, fold, models(seed), everything), x)

    return make


def simulated(kind: str, rate: float, seed: int, n: int = 21397) -> Planted:
    """A table of the competition's size: Gaussian classes, four members that know the given labels up to noise.

    Class-conditional: members know T'p. Instance-dependent: they know p with the runner-up raised where it is close.
    """
    rng = np.random.default_rng(1000 + seed)
    true = rng.choice(K, n, p=SHARES)
    centres = 4.2 / np.sqrt(2) * np.eye(K)
    x = centres[true] + rng.normal(size=(n, K))
    clean = _softmax(np.log(SHARES) + x @ centres.T - 0.5 * (centres**2).sum(axis=1))
    given = plant(true, rate, kind, ambiguity=clean, seed=seed)
    if kind == "class":
        transition = np.bincount(true * K + given, minlength=K * K).reshape(K, K)
        learned = clean @ (transition / transition.sum(axis=1, keepdims=True))
    else:
        runner = np.where(clean.argmax(axis=1)[:, None] == np.arange(K), 0, clean)
        runner /= runner.sum(axis=1, keepdims=True)
        close = np.sort(clean, axis=1)[:, -2] / clean.max(axis=1)
        flipped = np.minimum(rate * close / close.mean(), 0.45)[:, None]
        learned = (1 - flipped) * clean + flipped * runner
    shared = 0.4 * rng.normal(size=(n, K))
    members = [_softmax(np.log(learned) + shared + 0.8 * rng.normal(size=(n, K))) for _ in range(4)]
    return Planted(true, given, folds_of(given, seed), np.stack(members), None)


def _softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


# Finding


def found_table(title: str, make: Callable[[str, float, int], Planted], seeds: int) -> None:
    """Print precision, recall and F1 of the flags, and average precision of the order, means over seeds."""
    print(f"\n## {title}: planted errors found, the members' mean and the best member alone", flush=True)
    for kind in KINDS:
        for rate in RATES:
            runs = [make(kind, rate, seed) for seed in range(seeds)]
            right = np.mean([(run.members.mean(axis=0).argmax(axis=1) == run.true).mean() for run in runs])
            print(f"{kind} {rate:.0%} (the mean's accuracy on true labels {right:.3f})")
            for name in ("mean", "best member"):
                rows = np.mean([figures(run, best=name == "best member") for run in runs], axis=0)
                shown = ", ".join(f"{what} {value:.3f}" for what, value in zip(FIGURES, rows, strict=True))
                print(f"  {name:12s} {shown}", flush=True)


FIGURES = ("precision", "recall", "F1", "average precision")


def figures(data: Planted, *, best: bool) -> tuple[float, ...]:
    """Return precision, recall, F1 and average precision, of all members or of the one most often right."""
    wrong = data.true != data.given
    accuracy = [(member.argmax(axis=1) == data.given).mean() for member in data.members]
    found = detect_errors(data.given, data.members[int(np.argmax(accuracy))] if best else data.members)
    of_flags = [float(score(wrong, found.flags)) for score in (precision_score, recall_score, f1_score)]
    return (*of_flags, float(average_precision_score(wrong, -found.quality)))


# What it is worth


def worth_table(seeds: int) -> None:
    """Held-out accuracy on clean digits after training on all rows, on the cleaned ones, and without the planted."""
    x, y = digits()
    print("\n## Worth: held-out accuracy on clean labels (a network), digits, 30 % held out", flush=True)
    columns = ("no filter", *WAYS_OF_TRAINING, *(f"regained ({way})" for way in REGAINED))
    print(f"{'':14s}" + "".join(f"{name:>26s}" for name in columns))
    for kind in KINDS:
        for rate in (0.0, *RATES):
            if kind == "instance" and rate == 0:
                continue
            right: dict[str, list[np.ndarray]] = {}
            for seed in range(seeds):
                test = np.random.default_rng(seed).random(len(y)) < 0.3
                make = planted_on(x[~test], y[~test], digit_members)
                data = make(kind, rate, seed)
                for name, hit in trained_ways(data, x[test], y[test], seed).items():
                    right.setdefault(name, []).append(hit)
            print(
                f"{kind + f' {rate:.0%}':14s}" + worth_cells({k: np.concatenate(v) for k, v in right.items()}),
                flush=True,
            )


WAYS_OF_TRAINING = ("drop, cap 3 %", "drop all flagged", "flip all flagged", "soften", "oracle")
REGAINED = ("soften", "drop all flagged")  # for these: the share of the way from no filter to the oracle
LEARNERS = 3  # trainings of each way, whose hits are averaged: one network's luck is as large as a way's gain


def learner(seed: int) -> Any:
    """What is trained on the rows: a network that can learn wrong labels by heart, as those of the kit can."""
    return MLPClassifier((64,), alpha=1e-4, max_iter=200, random_state=seed)


def trained_ways(data: Planted, x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Share of learners that are right, for each row of the held-out part, after each way of training.

    `soften` knows no cap; all flagged is what no verb does, dropping uncapped.
    """
    assert data.embedding is not None
    found = detect_errors(data.given, data.members)
    rows = pd.DataFrame({"image_id": np.arange(len(data.given)).astype(str), "label": data.given})
    report = make_noise_report(rows["image_id"].to_numpy(), found)
    every = rows.assign(weight=1.0)
    trainings = {
        "no filter": every,
        "drop, cap 3 %": apply_noise_report(rows, report, action="drop"),
        "drop all flagged": every[~found.flags],
        "flip all flagged": every.assign(label=found.suggested),
        "soften": apply_noise_report(rows, report, action="soften"),
        "oracle": every[data.given == data.true],
    }
    return {name: hits(data.embedding, training, x, y, seed) for name, training in trainings.items()}


def hits(known: np.ndarray, training: pd.DataFrame, x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Share of the learners that are right, for each held-out row; known (N, D) are the pictures by the rows' ids."""
    at = training["image_id"].to_numpy(int)
    fitted = [
        learner(1000 * k + seed).fit(known[at], training["label"], sample_weight=training["weight"].to_numpy())
        for k in range(LEARNERS)
    ]
    return np.mean([model.predict(x) == y for model in fitted], axis=0)


def worth_cells(right: dict[str, np.ndarray]) -> str:
    """Accuracy of each way, its paired interval against no filter, and the share of the way to the oracle."""
    base = right["no filter"]
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(base), (2000, len(base)))
    cells = [f"{base.mean():>26.4f}"]
    for name in WAYS_OF_TRAINING:
        gain = right[name] - base
        low, high = np.quantile(gain[rows].mean(axis=1), [0.025, 0.975])
        cells.append(f"{f'{right[name].mean():.4f} [{low:+.4f},{high:+.4f}]':>26s}")
    room = right["oracle"].mean() - base.mean()
    shares = ((right[way].mean() - base.mean()) / room if room > 0 else float("nan") for way in REGAINED)
    return "".join(cells) + "".join(f"{share:>26.0%}" for share in shares)


def main() -> None:
    """Run the parts asked for."""
    parts = ("digits", "photos", "simulated", "worth")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    if "digits" in options.part:
        found_table("Digits with the competition's shares", planted_on(*digits(), digit_members), options.seeds)
    if "simulated" in options.part:
        found_table("Simulated 21,397 x 5", simulated, options.seeds)
    if "photos" in options.part:
        data = photographs()
        if data is None:
            print(f"\n## Photographs: skipped, no data at {REAL}")
        else:
            title = "Photographs (their own labels, about a tenth of them wrong, count as true)"
            found_table(title, planted_on(*data, photo_members), options.seeds)
    if "worth" in options.part:
        worth_table(options.seeds)


if __name__ == "__main__":
    main()
