"""What a frozen backbone knows: cached features, kNN and a linear probe, with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cassava_kit.files import atomic_path, sha256_bytes

NEIGHBOURS = 20
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: decades around where frozen features are fitted best
INNER_FOLDS = 3
FEATURE_BATCH = 64
CHUNK = 1024  # images between two steps of the bar, and in one file of the cache


@dataclass(frozen=True)
class Pixels:
    """How images enter a backbone: side in pixels, and mean and std of RGB in 0..1."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@torch.no_grad()
def extract_features(
    backbone: nn.Module, paths: Sequence[Path], pixels: Pixels, *, cache: Path | None = None
) -> np.ndarray:
    """Features (N, D) float32 of image files through the evaluation pixels; the backbone is left in its mode.

    With `cache`, a folder, they are kept there under the weights', files' and pixels' hash, and read back next time.
    """
    kept = None if cache is None else Path(cache) / f"features-{_features_key(backbone, paths, pixels)}.npy"
    if kept is not None and kept.is_file():
        return np.load(kept, allow_pickle=False)
    training, device = backbone.training, next(backbone.parameters()).device
    backbone.eval().to(memory_format=torch.channels_last)  # less than half the time on a processor
    parts = [_features(backbone, batch, device) for batch in pixel_batches(paths, pixels)]
    backbone.train(training)
    features = np.concatenate(parts)
    if kept is not None:
        with atomic_path(kept) as temporary, temporary.open("wb") as file:
            np.save(file, features)
    return features


def readable_features(
    backbone: nn.Module, paths: Sequence[Path], pixels: Pixels, *, cache: Path | None = None
) -> np.ndarray:
    """`extract_features` of files of which some are broken: these get the mean vector, which is near to nothing."""
    from rich.console import Console
    from rich.progress import track

    from cassava_kit.data.images import quick_check

    whole = np.array([quick_check(path) is None for path in paths])
    if not whole.any():
        raise FileNotFoundError(f"none of the images can be read (first: {paths[0]}); --data must be their folder")
    readable = [path for path, good in zip(paths, whole, strict=True) if good]
    starts = track(range(0, len(readable), CHUNK), "Features", console=Console(stderr=True), transient=True)
    features = np.concatenate(
        [extract_features(backbone, readable[start : start + CHUNK], pixels, cache=cache) for start in starts]
    )
    vectors = np.tile(features.mean(axis=0), (len(paths), 1))
    vectors[whole] = features
    return vectors


def _features(backbone: nn.Module, batch: torch.Tensor, device: torch.device) -> np.ndarray:
    return backbone(batch.to(device, memory_format=torch.channels_last)).float().cpu().numpy()


def pixel_batches(paths: Sequence[Path], pixels: Pixels) -> Any:
    """Normalised batches (B, 3, size, size) of the files, a few at a time."""
    from cassava_kit.data.images import load_image
    from cassava_kit.data.transforms import normalize

    for start in range(0, len(paths), FEATURE_BATCH):
        images = [load_image(path, (pixels.size, pixels.size)) for path in paths[start : start + FEATURE_BATCH]]
        batch = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())
        yield normalize(batch, pixels.mean, pixels.std)


def _features_key(backbone: nn.Module, paths: Sequence[Path], pixels: Pixels) -> str:
    """A name that changes with any weight, file or pixel setting."""
    weights = b"".join(
        name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        if value.ndim
        else name.encode()
        for name, value in backbone.state_dict().items()
    )
    files = [(str(path), Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in paths]
    return sha256_bytes(
        weights + json.dumps([files, pixels.size, pixels.mean, pixels.std, str(type(backbone))]).encode()
    )[:24]


def knn_probs(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, n_classes: int, k: int = NEIGHBOURS
) -> np.ndarray:
    """Shares of the k nearest training rows by cosine, weighted by similarity: pred_probs (N, K)."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    model = KNeighborsClassifier(min(k, len(train)), weights=_similarity, metric="euclidean")
    model.fit(normalize(train), labels)
    return spread(model.predict_proba(normalize(test)), model.classes_, n_classes)


def _similarity(distances: np.ndarray) -> np.ndarray:
    """exp(cosine / 0.1) of Euclidean distances between unit vectors: Wu et al. 2018, the usual kNN probe's weights."""
    return np.exp((1 - distances**2 / 2 - 1) / 0.1)


def linear_probs(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, n_classes: int, c: float | None = None
) -> np.ndarray:
    """Logistic regression on standardised features: pred_probs (N, K).

    `c` is scikit-learn's inverse penalty; none: the one with the least log loss in a cross-validation of the training
    rows (`choose_penalty`).
    """
    model = linear_model(choose_penalty(train, labels) if c is None else c)
    model.fit(train, labels)
    return spread(model.predict_proba(test), model[-1].classes_, n_classes)


def linear_model(c: float) -> Any:
    """The linear probe, not yet fitted: standardised features, then logistic regression at this inverse penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))


def choose_penalty(x: np.ndarray, labels: np.ndarray) -> float:
    """The inverse penalty of `PENALTIES` with the least log loss in a stratified cross-validation of these rows.

    Classes with fewer rows than folds take no part in the choice, and there are as many folds, up to `INNER_FOLDS`, as
    leave two classes. Where none do (one row a class) the middle of the range is taken.
    """
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    counts = np.bincount(labels)
    folds = next((k for k in range(INNER_FOLDS, 1, -1) if (counts >= k).sum() >= 2), None)
    if folds is None:
        return PENALTIES[len(PENALTIES) // 2]
    rows = counts[labels] >= folds
    splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    grid = {"logisticregression__C": PENALTIES}
    search = GridSearchCV(linear_model(1.0), grid, scoring="neg_log_loss", cv=splitter, refit=False)
    search.fit(x[rows], labels[rows])
    return float(PENALTIES[int(np.argmax(search.cv_results_["mean_test_score"]))])


def spread(probs: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Probabilities of the classes seen (N, S) as those of all classes (N, K)."""
    full = np.zeros((len(probs), n_classes))
    full[:, classes] = probs
    return full


def balanced_answers(pred_probs: np.ndarray, train_labels: np.ndarray) -> np.ndarray:
    """Most probable class once every class is equally frequent: the decision that balanced accuracy rewards."""
    counts = np.bincount(train_labels, minlength=pred_probs.shape[1])
    return (pred_probs / np.maximum(counts, 1)).argmax(axis=1)


def balanced_accuracy(labels: np.ndarray, answers: np.ndarray) -> float:
    """Mean of the classes' recalls, over the classes that occur."""
    return float(np.mean([np.mean(answers[labels == k] == k) for k in np.unique(labels)]))


class Probe:
    """A fixed half of labelled images as a bank and the other half as questions, for a look every few epochs."""

    def __init__(
        self, paths: Sequence[Path], labels: np.ndarray, pixels: Pixels, *, limit: int = 2000, seed: int = 0
    ) -> None:
        labels = np.asarray(labels)
        known = np.flatnonzero(labels >= 0)
        counts = np.bincount(labels[known]) if len(known) else np.zeros(0, dtype=int)
        if (counts >= 2).sum() < 2:
            raise ValueError(
                "a kNN probe needs at least two classes with two labelled images each; give labels or none"
            )
        order = np.random.default_rng(seed).permutation(known[counts[labels[known]] >= 2])[:limit]
        self.paths, self.labels, self.pixels = [Path(paths[i]) for i in order], labels[order], pixels
        self.bank = self._stratified_half()

    def _stratified_half(self) -> np.ndarray:
        half = np.zeros(len(self.labels), dtype=bool)
        for k in np.unique(self.labels):
            half[np.flatnonzero(self.labels == k)[::2]] = True
        return half

    def knn(self, backbone: nn.Module) -> tuple[float, float]:
        """Accuracy and balanced accuracy of the half that asks."""
        features = extract_features(backbone, self.paths, self.pixels)
        bank, labels = self.bank, self.labels
        probs = knn_probs(features[bank], labels[bank], features[~bank], n_classes=int(labels.max()) + 1)
        plain = float(np.mean(probs.argmax(axis=1) == labels[~bank]))
        return plain, balanced_accuracy(labels[~bank], balanced_answers(probs, labels[bank]))
