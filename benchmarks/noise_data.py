"""Tables with planted wrong labels for `bench_noise.py`; entry points `planted_on` and `simulated`.

Three kinds: class-conditional (any row, to a class drawn from a random row of a transition matrix), instance-dependent
(rows chosen by their ambiguity for a model of the clean labels, to a class it confuses them with) and clustered (all
rows of a class in a cluster of look-alikes, to the neighbouring class).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cassava_kit.files import atomic_path, sha256_bytes, sha256_file

SHARES = np.array([1087, 2189, 2386, 13158, 2577]) / 21397
K = len(SHARES)
CLUSTER_ROWS = 30  # about so many rows lie in one cluster
REAL = Path(os.environ.get("CASSAVA_KIT_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")


class Planted(NamedTuple):
    """True and given labels (N,), folds (N,), members' out-of-fold probabilities (M, N, K), vectors (N, D)."""

    true: np.ndarray
    given: np.ndarray
    fold: np.ndarray
    members: np.ndarray
    embedding: np.ndarray


def plant(true: np.ndarray, rate: float, kind: str, *, ambiguity: np.ndarray, x: np.ndarray, seed: int) -> np.ndarray:
    """Return given labels: about `rate` of the rows made wrong; ambiguity (N, K) is a clean model's probabilities."""
    if kind == "clustered":
        return plant_in_clusters(true, rate, x, seed=seed)
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


def plant_in_clusters(true: np.ndarray, rate: float, x: np.ndarray, *, seed: int) -> np.ndarray:
    """Return given labels: in clusters of the vectors x (N, D) every row of a class gets the neighbouring class.

    Of the other classes the neighbouring one has the mean nearest to the rows' own. Cells (a class in a cluster) are
    taken in random order; one that would lead above `rate` is left out. People err so: alike on what looks alike.
    """
    clusters = KMeans(max(2, len(true) // CLUSTER_ROWS), n_init=1, random_state=seed).fit_predict(x)
    means = np.stack([x[true == k].mean(axis=0) for k in range(K)])
    cells = np.random.default_rng(seed).permutation(np.unique(clusters * K + true))
    given, left = true.copy(), round(rate * len(true))
    for cell in cells:
        rows = np.flatnonzero(clusters * K + true == cell)
        if len(rows) <= left:
            far = ((means - x[rows].mean(axis=0)) ** 2).sum(axis=1)
            far[cell % K] = np.inf
            given[rows] = far.argmin()
            left -= len(rows)
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
        given = plant(y, rate, kind, ambiguity=ambiguity, x=x, seed=seed) if rate else y
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
    given = plant(true, rate, kind, ambiguity=clean, x=x, seed=seed)
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
    return Planted(true, given, folds_of(given, seed), np.stack(members), x)


def _softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
