"""Vectors of images, from a file of any tool or a frozen backbone: `embed_images`, `extract_features`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition
from cassava_kit.errors import UserError
from cassava_kit.files import atomic_path, cache_dir, find_file, find_folder, path_inside, sha256_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

FEATURE_BATCH = 64
FEATURE_CHUNK = 1024  # images between two steps of the bar, and in one file of the cache


@dataclass(frozen=True)
class Pixels:
    """How images enter a backbone: side in pixels, and mean and std of RGB in 0..1."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def check_embedding_source(
    embedding: Path | None, backbone: Path | None, *, competition: Competition, fold_hash: str | None
) -> None:
    """Refuse what neighbours cannot come from, before slow work.

    `competition` and `fold_hash` are those of the labels that are asked about, as their files name them.

    Raises:
        UserError: both a file and a checkpoint are given, or the checkpoint has learnt labels of this competition or
            split: its features repeat the labels that they are asked about.
        FileNotFoundError: no checkpoint.
    """
    from cassava_kit.models.checkpoint import labels_learnt, may_share_labels, read_info

    if backbone is None:
        return
    if embedding is not None:
        raise UserError("give --embedding FILE or --backbone CHECKPOINT, not both")
    read_info(backbone)
    info = labels_learnt(backbone)
    if info is None:
        return
    same_split = info.fold_hash is not None and info.fold_hash == fold_hash
    if same_split or may_share_labels(info, competition):
        raise UserError(
            f"--backbone {backbone} has learnt labels of these images ({info.name}), so that its features repeat their "
            "errors; give a backbone of pretrain, or --embedding FILE"
        )


def embed_images(
    image_ids: np.ndarray,
    embedding: Path | None,
    backbone: tuple[Path, Path] | None,
    competition: Competition,
) -> tuple[np.ndarray | None, str | None]:
    """Return vectors (N, D) of images from a file or a checkpoint, and its name; (None, None) where neither is given.

    `backbone` is a checkpoint and the competition folder with the images.
    """
    if embedding is not None:
        return read_embedding(embedding, image_ids), embedding.name
    if backbone is None:
        return None, None
    checkpoint, data = backbone
    folder = data / competition.train_images
    find_folder(folder, "--data must be the competition folder")
    paths = [path_inside(folder, name) for name in image_ids]
    vectors = backbone_embedding(checkpoint, paths, cache=cache_dir() / "features")
    return vectors, checkpoint.name


def read_embedding(path: str | Path, image_ids: np.ndarray) -> np.ndarray:
    """Read the vectors (N, D) of these images, joined by id.

    The file is an .npz with the arrays `image_id` and `embedding`, or a .csv with the column image_id and numbers
    beside it.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it has another form, an image twice or not at all, or a number that is not finite.
    """
    path = find_file(path, "embedding", "give an .npz or a .csv of vectors, or --backbone CHECKPOINT, which makes them")
    ids, vectors = _read_csv(path) if path.suffix == ".csv" else _read_npz(path)
    if vectors.ndim != 2 or len(ids) != len(vectors) or not vectors.shape[1]:
        raise UserError(f"{path} must hold one vector an image, got {len(ids)} ids and shape {vectors.shape}")
    at = pd.Series(np.arange(len(ids)), index=ids)
    if at.index.has_duplicates:
        raise UserError(f"{path} names {at.index[at.index.duplicated()][0]} more than once")
    rows = at.reindex(np.asarray(image_ids).astype(str))
    if rows.isna().any():
        raise UserError(f"{path} has no vector for {rows.index[rows.isna()][0]}; embed every training image")
    found = vectors[rows.to_numpy(int)]
    broken = ~np.isfinite(found).all(axis=1)
    if broken.any():
        raise UserError(f"{path} has a number that is not finite for {rows.index[broken][0]}; compute it again")
    return found


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import zlib
    from zipfile import BadZipFile

    try:
        # One array alone, as numpy.save writes it, is no context manager: a TypeError.
        with np.load(path, allow_pickle=False) as stored:
            return stored["image_id"].astype(str), stored["embedding"].astype(np.float32)
    except (LookupError, ValueError, OSError, EOFError, AttributeError, TypeError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path} must be an .npz file with the arrays image_id and embedding ({error})") from None


def _read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        table = pd.read_csv(path, dtype={"image_id": str})
        vectors = table.drop(columns="image_id").to_numpy(np.float32)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} must have the column image_id and only numbers beside it ({error})") from None
    return table["image_id"].to_numpy(str), vectors


def backbone_embedding(checkpoint: Path, paths: Sequence[Path], *, cache: Path | None = None) -> np.ndarray:
    """Return features (N, D) of image files from a checkpoint of the kit, without its head.

    An image that cannot be read gets the mean vector. `cache` is a folder for the features.
    """
    from cassava_kit.inference.machine import usable_devices
    from cassava_kit.models.checkpoint import read_info
    from cassava_kit.models.network import create_model
    from cassava_kit.models.weights import load_weights

    info = read_info(checkpoint)
    model = create_model(info.model, 0, model_args=info.model_args)
    load_weights(model, checkpoint)
    pixels = Pixels(info.input_size[0], info.mean, info.std)
    return readable_features(model.to(usable_devices("auto")[0]), paths, pixels, cache=cache)


def extract_features(
    backbone: nn.Module, paths: Sequence[Path], pixels: Pixels, *, cache: Path | None = None
) -> np.ndarray:
    """Return features (N, D) float32 of image files, decoded as for evaluation; the backbone keeps its mode.

    With `cache`, a folder, they are stored there under the hash of weights, files and pixels, and read back next time.
    """
    return extract_views(backbone, paths, pixels, "none", cache=cache)[0]


def extract_views(
    backbone: nn.Module, paths: Sequence[Path], pixels: Pixels, views: str, *, cache: Path | None = None
) -> np.ndarray:
    """Return features (V, N, D) float32 of image files through each view of a preset, the plain one first.

    As `extract_features`; an image is decoded once.
    """
    import torch

    from cassava_kit.data.transforms import normalize
    from cassava_kit.inference.device_queue import Ordered, make_queue, order
    from cassava_kit.inference.tta import make_views

    kept = None if cache is None else Path(cache) / f"features-{_features_key(backbone, paths, pixels, views)}.npy"
    if kept is not None and kept.is_file():
        return np.load(kept, allow_pickle=False)
    training, device = backbone.training, next(backbone.parameters()).device
    backbone.eval().to(memory_format=torch.channels_last)  # less than half the time on a CPU
    seen, queue, size = make_views(views), make_queue(device), FEATURE_BATCH

    def compute(batch: torch.Tensor) -> torch.Tensor:
        images = normalize(batch, pixels.mean, pixels.std)
        return torch.stack([backbone(view(images).to(memory_format=torch.channels_last)).float() for view in seen])

    parts: list[np.ndarray] = []
    under_way: Ordered | None = None  # a GPU computes one batch while the next is decoded
    with torch.no_grad():
        for batch in pixel_batches(paths, pixels, pinned=device.type == "cuda"):
            before = under_way
            under_way, size = order(queue, batch, compute, size)
            parts += [] if before is None else [before.answer.wait()]
    parts += [] if under_way is None else [under_way.answer.wait()]
    backbone.train(training)
    features = np.concatenate(parts, axis=1)
    if kept is not None:
        with atomic_path(kept) as temporary, temporary.open("wb") as file:
            np.save(file, features)
    return features


def readable_features(
    backbone: nn.Module, paths: Sequence[Path], pixels: Pixels, *, cache: Path | None = None
) -> np.ndarray:
    """Return `extract_features` of files, some of which may be broken: these get the mean vector.

    Raises:
        FileNotFoundError: none of the images can be read.
    """
    from cassava_kit.data.images import quick_check
    from cassava_kit.data.progress import track

    whole = np.array([quick_check(path) is None for path in paths])
    if not whole.any():
        raise FileNotFoundError(f"none of the images can be read (first: {paths[0]}); --data must be their folder")
    readable = [path for path, good in zip(paths, whole, strict=True) if good]
    starts = track(range(0, len(readable), FEATURE_CHUNK), "Features")
    features = np.concatenate(
        [extract_features(backbone, readable[start : start + FEATURE_CHUNK], pixels, cache=cache) for start in starts]
    )
    vectors = np.tile(features.mean(axis=0), (len(paths), 1))
    vectors[whole] = features
    return vectors


def pixel_batches(paths: Sequence[Path], pixels: Pixels, *, pinned: bool = False) -> Iterator[torch.Tensor]:
    """Yield uint8 batches (B, 3, size, size) of the files, `FEATURE_BATCH` at a time."""
    import torch

    from cassava_kit.data.images import load_image
    from cassava_kit.inference.device_queue import empty_host_tensor

    for start in range(0, len(paths), FEATURE_BATCH):
        files = paths[start : start + FEATURE_BATCH]
        batch = empty_host_tensor((len(files), 3, pixels.size, pixels.size), torch.uint8, pinned=pinned)
        for i, path in enumerate(files):
            batch[i] = torch.from_numpy(load_image(path, (pixels.size, pixels.size)).transpose(2, 0, 1))
        yield batch


def _features_key(backbone: nn.Module, paths: Sequence[Path], pixels: Pixels, views: str) -> str:
    """Return a name that changes with any weight, file, pixel setting or view."""
    import torch

    from cassava_kit.data.images import PIXELS_VERSION

    # Flattened first: of a channels-last 1 x 1 convolution the strides are odd, though it counts as contiguous.
    weights = b"".join(
        name.encode() + value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        for name, value in backbone.state_dict().items()
    )
    files = [(str(path), Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in paths]
    return sha256_bytes(
        weights
        + json.dumps([PIXELS_VERSION, files, pixels.size, pixels.mean, pixels.std, views, str(type(backbone))]).encode()
    )[:24]
