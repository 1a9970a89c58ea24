"""Pictures of the notebook `pretrain-ssl`: `pretraining_curves`, `view_pairs`, `neighbours`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition, current
from cassava_kit.files import read_csv, read_json
from cassava_kit.report.charts import CHART_WIDTH, COLORS, INK, Chart, apply_style, axes, chart
from cassava_kit.report.notebook.show import CaptionedPhoto, photo_sheet, read_photo, short_class
from cassava_kit.training.ssl.run_folder import BACKBONE, METRICS, RUN_CONFIG

if TYPE_CHECKING:
    from cassava_kit.training.ssl.config import PretrainConfig

# Images whose neighbours are looked for.
COMPARED_IMAGES = 600
# Column of metrics.csv, and what it is called.
PANELS = {
    "loss": "loss",
    "std": "spread of the embeddings (0: collapsed)",
    "rank": "effective rank of the embeddings (1: collapsed)",
    "knn_balanced": "kNN balanced accuracy of the backbone",
}


def pretraining_curves(run: Path) -> list[Any]:
    """Draw loss, spread, rank and probe of a run by epoch; a broken line is where the run raises its alarm."""
    frame = read_csv(run / METRICS)
    settings = read_json(run / RUN_CONFIG)["config"]
    alarms = {"std": settings.get("min_std"), "rank": settings.get("min_rank")}
    drawn = [draw_column(frame, name, alarms.get(name)) for name in PANELS if name in frame.columns]
    return [tuple(drawn[n : n + 2]) for n in range(0, len(drawn), 2)]


@apply_style
def draw_column(frame: pd.DataFrame, name: str, alarm: float | None) -> Chart:
    """Draw a column of `metrics.csv` by epoch."""
    from matplotlib.ticker import MaxNLocator

    figure, (ax,) = axes(CHART_WIDTH, 2.6)
    rows = frame[frame[name].notna()]
    ax.plot(
        rows["epoch"], rows[name], marker="o" if len(rows) < 15 else "", markersize=3, color=COLORS[0], linewidth=1.5
    )
    if alarm is not None:
        ax.axhline(alarm, color=INK, linestyle="--", linewidth=1)
    ax.set(title=PANELS[name], xlabel="epoch")
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid()
    return chart(name, f"{PANELS[name]} by epoch.".capitalize(), figure)


def pictured_images(data: Path, n: int, competition: Competition) -> tuple[list[Path], list[int | None]]:
    """Return up to `n` whole training images, spread over the folder, and their labels, None where there is none."""
    from cassava_kit.data.images import quick_check
    from cassava_kit.training.ssl.folder import UNKNOWN, gather_images

    paths, labels = gather_images(data, [], competition)
    chosen = [pair for pair in _spread(zip(paths, labels, strict=True), n) if quick_check(pair[0]) is None]
    return [path for path, _ in chosen], [None if label == UNKNOWN else label for _, label in chosen]


def view_pairs(run: Path, data: Path, n: int, competition: Competition | None = None) -> list[Any]:
    """Draw `n` images, each with two views that the run's settings cut from it, in one column."""
    config = read_pretraining(run)
    chosen, _ = pictured_images(data, n, competition or current())
    first, second = cut_pair(config, chosen)
    rows = {
        "the image": [read_photo(path) for path in chosen],
        "one view": [CaptionedPhoto(view) for view in first],
        "another view": [CaptionedPhoto(view) for view in second],
    }
    alt = "Images, and under each two views that the network learns to recognise as one image."
    return [photo_sheet("views", alt, rows, columns=n)]


def read_pretraining(run: Path) -> PretrainConfig:
    """Return the configuration that a pretraining run wrote."""
    from cassava_kit.training.ssl.methods import configure

    values = dict(read_json(run / RUN_CONFIG)["config"])
    return configure(values.pop("method"), **values)


def cut_pair(config: PretrainConfig, paths: Sequence[Path]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return two views (size, size, 3) uint8 of each image, as training cuts them, normalisation undone."""
    import torch

    from cassava_kit.data.images import load_image
    from cassava_kit.training.ssl.batch_views import cut_views
    from cassava_kit.training.ssl.file_views import file_transform
    from cassava_kit.training.ssl.loader import FileViews

    if config.store_size:
        pixels = np.stack([load_image(path, config.store_size) for path in paths]).transpose(0, 3, 1, 2)
        generator = torch.Generator().manual_seed(config.seed)
        made = cut_views(
            torch.from_numpy(pixels.copy()), config.views, mean=config.mean, std=config.std, generator=generator
        )
        views = made[:2]
    else:
        items = FileViews(paths, file_transform(config), seed=config.seed)
        pairs = [items[n][:2] for n in range(len(paths))]
        views = [torch.stack([pair[side] for pair in pairs]) for side in (0, 1)]
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    restored = [((view * std + mean).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy() for view in views]
    return list(restored[0]), list(restored[1])


def neighbours(run: Path, data: Path, n: int = 4, competition: Competition | None = None) -> list[Any]:
    """Draw `n` images, each with its five nearest by the backbone before pretraining and after it.

    Labels are shown and counted alone: pretraining has not seen them. A frame says whether two labels are equal.
    """
    competition = competition or current()
    paths, labels = pictured_images(data, COMPARED_IMAGES, competition)
    config = read_pretraining(run)
    before, after = (backbone_features(config, paths, weights) for weights in (None, run / BACKBONE))
    known = [k for k, label in enumerate(labels) if label is not None]
    queries = _spread(known or range(len(paths)), n)
    sheets = []
    for number, query in enumerate(queries, start=1):
        rows: dict[str, list[CaptionedPhoto]] = {}
        for word, features in (("before", before), ("after", after)):
            near = nearest_rows(features, query, 5)
            photos = [read_photo(paths[query], _label_name(competition, labels[query]))]
            for k in near:
                name, same = _label_name(competition, labels[k]), _same(labels[query], labels[k])
                photos.append(read_photo(paths[k], name, right=same))
            rows[f"{number}. an image and its nearest, {word} pretraining"] = photos
        alt = f"Image {number} and its five nearest by the backbone, before and after pretraining."
        sheets.append(photo_sheet(f"neighbours{number}", alt, rows, columns=6))
    shares = [share_of_same(features, labels) for features in (before, after)]
    said = (
        f"label of the nearest image is the same: {shares[0]:.1%} before, {shares[1]:.1%} after ({len(known):,} images)"
    )
    return [tuple(sheets), *([said] if len(known) > 1 else [])]


def backbone_features(config: PretrainConfig, paths: Sequence[Path], weights: Path | None) -> np.ndarray:
    """Return features (N, D) of images, rows of length 1: of the exported backbone, or of one with random weights.

    A run that started from given weights is compared with random ones all the same: the file may not be at hand.
    """
    import torch

    from cassava_kit.inference.features import Pixels, extract_features
    from cassava_kit.inference.machine import usable_devices
    from cassava_kit.models.network import args_for_size, create_model
    from cassava_kit.models.weights import load_weights

    torch.manual_seed(config.seed)
    args = args_for_size(config.backbone, config.image_size, config.model_args)
    backbone = create_model(config.backbone, 0, model_args=args)
    if weights is not None:
        load_weights(backbone, weights)
    device = usable_devices("auto")[0]  # a GPU that is announced may not compute
    features = extract_features(backbone.to(device), paths, Pixels(config.image_size, config.mean, config.std))
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def nearest_rows(features: np.ndarray, query: int, k: int) -> list[int]:
    """Return the `k` rows of unit features (N, D) nearest to one by cosine, without itself."""
    similarity = features @ features[query]
    similarity[query] = -np.inf
    return np.argsort(-similarity, kind="stable")[: min(k, len(features) - 1)].tolist()


def share_of_same(features: np.ndarray, labels: Sequence[int | None]) -> float:
    """Return the share of labelled images whose nearest labelled image has their label."""
    known = np.array([k for k, label in enumerate(labels) if label is not None], int)
    if len(known) < 2:
        return float("nan")
    similarity = features[known] @ features[known].T
    np.fill_diagonal(similarity, -np.inf)
    values = np.array([labels[k] for k in known])
    return float((values[similarity.argmax(axis=1)] == values).mean())


def _spread(items: Any, n: int) -> list[Any]:
    """Return `n` items at even distances."""
    items = list(items)
    return [items[int(k * len(items) / n)] for k in range(n)] if len(items) > n else items


def _same(one: int | None, other: int | None) -> bool | None:
    return None if one is None or other is None else one == other


def _label_name(competition: Competition, label: int | None) -> str:
    return "no label" if label is None else short_class(competition.classes[label])
