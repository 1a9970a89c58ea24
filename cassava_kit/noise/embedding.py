"""Vectors of images, by id: read from a file of any tool, or computed with a backbone of the kit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd


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
    import zlib
    from zipfile import BadZipFile

    try:
        # One array alone, as numpy.save writes it, is no context manager: a TypeError.
        with np.load(path, allow_pickle=False) as stored:
            return stored["image_id"].astype(str), stored["embedding"].astype(np.float32)
    except (LookupError, ValueError, OSError, EOFError, AttributeError, TypeError, BadZipFile, zlib.error) as error:
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

    An image that cannot be read gets the mean vector. `cache` is a folder for the features.
    """
    from cassava_kit.checkpoint import read_info
    from cassava_kit.inference.machine import usable_devices
    from cassava_kit.models import create_model, load_weights
    from cassava_kit.ssl.evaluate import Pixels, readable_features

    info = read_info(checkpoint)
    model = create_model(info.model, 0, model_args=info.model_args)
    load_weights(model, checkpoint)
    pixels = Pixels(info.input_size[0], info.mean, info.std)
    return readable_features(model.to(usable_devices("auto")[0]), paths, pixels, cache=cache)
