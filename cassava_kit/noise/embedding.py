"""Vectors of images, by id: read from a file of any tool, or computed with a backbone of the kit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cassava_kit.files import atomic_path

CHUNK = 1024  # images between two steps of the bar, and in one file of the cache


def write_embedding(path: str | Path, image_ids: np.ndarray, vectors: np.ndarray) -> None:
    """Write an embedding (N, D) of images as .npz: `image_id` (N,) and `embedding` (N, D), atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, image_id=np.asarray(image_ids).astype(str), embedding=np.asarray(vectors, np.float32))


def read_embedding(path: str | Path, image_ids: np.ndarray) -> np.ndarray:
    """The embedding (N, D) of these images, joined by id.

    From an .npz file with `image_id` and `embedding`, or from a .csv with the column image_id and numbers beside it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no embedding {path}")
    ids, vectors = _read_csv(path) if path.suffix == ".csv" else _read_npz(path)
    if vectors.ndim != 2 or len(ids) != len(vectors) or not vectors.shape[1]:
        raise ValueError(f"{path} must hold one vector an image, got {len(ids)} ids and shape {vectors.shape}")
    at = pd.Series(np.arange(len(ids)), index=ids)
    if at.index.has_duplicates:
        raise ValueError(f"{path} names {at.index[at.index.duplicated()][0]} more than once")
    rows = at.reindex(np.asarray(image_ids).astype(str))
    if rows.isna().any():
        raise ValueError(f"{path} has no vector for {rows.index[rows.isna()][0]}; embed every training image")
    found = vectors[rows.to_numpy(int)]
    broken = ~np.isfinite(found).all(axis=1)
    if broken.any():
        raise ValueError(f"{path} has a number that is not finite for {rows.index[broken][0]}; compute it again")
    return found


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["image_id"].astype(str), stored["embedding"].astype(np.float32)
    except (KeyError, ValueError, OSError, EOFError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} must be an .npz file with the arrays image_id and embedding ({error})") from None


def _read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        table = pd.read_csv(path, dtype={"image_id": str})
        vectors = table.drop(columns="image_id").to_numpy(np.float32)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} must have the column image_id and only numbers beside it ({error})") from None
    return table["image_id"].to_numpy(str), vectors


def backbone_embedding(checkpoint: Path, paths: Sequence[Path], *, cache: Path | None = None) -> np.ndarray:
    """Features (N, D) of image files from a checkpoint of the kit, supervised or self-supervised, without its head.

    An image that cannot be read gets the mean vector, which is near to nothing. `cache` is a folder for the features.
    """
    from rich.console import Console
    from rich.progress import track

    from cassava_kit.checkpoint import read_info
    from cassava_kit.data.images import quick_check
    from cassava_kit.inference.machine import usable_devices
    from cassava_kit.models import create_model, load_weights
    from cassava_kit.ssl.evaluate import Pixels, extract_features

    info = read_info(checkpoint)
    model = create_model(info.model, 0, model_args=info.model_args)
    load_weights(model, checkpoint)
    whole = np.array([quick_check(path) is None for path in paths])
    if not whole.any():
        raise FileNotFoundError(f"none of the images can be read (first: {paths[0]}); --data must be their folder")
    pixels = Pixels(info.input_size[0], info.mean, info.std)
    readable = [path for path, good in zip(paths, whole, strict=True) if good]
    model = model.to(usable_devices("auto")[0])
    starts = track(range(0, len(readable), CHUNK), "Embedding", console=Console(stderr=True), transient=True)
    features = np.concatenate(
        [extract_features(model, readable[start : start + CHUNK], pixels, cache=cache) for start in starts]
    )
    vectors = np.tile(features.mean(axis=0), (len(paths), 1))
    vectors[whole] = features
    return vectors
