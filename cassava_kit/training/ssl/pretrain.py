"""Pretrain a backbone on images without labels, and export it as plain timm weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cassava_kit.errors import UserError
from cassava_kit.files import read_json, sha256_bytes, sha256_file, write_json
from cassava_kit.models.checkpoint import CheckpointInfo, save_checkpoint
from cassava_kit.training.ssl.config import WITHOUT_EFFECT, PretrainConfig

BACKBONE = "backbone.safetensors"
CONFIG = "config.json"
FAILED = "failed.json"
LAST = "last.ckpt"
METRICS = "metrics.csv"
STORE = "pixels.npy"


def pretrain(
    config: PretrainConfig,
    images: Sequence[Path],
    out_dir: Path,
    *,
    init: Path | None = None,
    labels: Sequence[int] | np.ndarray | None = None,
) -> Path:
    """Pretrain on these images and return `out_dir/backbone.safetensors`, plain timm weights with the kit's header.

    `init` is a file of weights to start from. `labels` (N,), -1 where unknown, are for the kNN probe alone and never
    reach the loss. Beside the backbone lie config.json, metrics.csv and last.ckpt: the same call goes on after a kill,
    and returns at once when the run is complete.

    Raises:
        DivergedError: the loss is not finite.
        CollapseError: the embeddings no longer tell images apart, and `on_collapse` is stop.

    After either the folder holds failed.json with the reason; a call with other settings starts anew in it.
    """
    from cassava_kit.training.diverged import DivergedError
    from cassava_kit.training.ssl.collapse import CollapseError
    from cassava_kit.training.ssl.loader import readable

    images, out_dir = [Path(path) for path in images], Path(out_dir)
    known = check_labels(labels, len(images))
    whole = set(readable(images))
    if len(whole) < len(images):
        warnings.warn(f"left out {len(images) - len(whole)} of {len(images)} images that are not whole", stacklevel=2)
    kept = np.array([path in whole for path in images])
    images, known = [path for path in images if path in whole], None if known is None else known[kept]
    check_size(config, len(images))
    if not claim(out_dir, describe(config, images, init)):
        return out_dir / BACKBONE
    for message in accumulation_warnings(config):
        warnings.warn(message, stacklevel=2)
    try:
        module = fit(config, images, out_dir, init=init, labels=known)
    except (DivergedError, CollapseError) as error:
        write_json(out_dir / FAILED, {"reason": str(error), "diverged": isinstance(error, DivergedError)})
        raise
    if module is not None:
        export(module, out_dir / BACKBONE, n_images=len(images), init=init)
    return out_dir / BACKBONE


def check_labels(labels: Sequence[int] | np.ndarray | None, n: int) -> np.ndarray | None:
    """Labels as an integer array (n,), or None; UserError where they are not one for each image."""
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.shape != (n,) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"labels must be {n} whole numbers, one an image (-1 where unknown), got {array.shape} {array.dtype}"
        )
    return array


def check_size(config: PretrainConfig, n: int) -> None:
    """UserError where the images do not fill one batch on every device."""
    needed = config.batch_size * config.devices
    if n < needed:
        raise UserError(
            f"{n} images do not fill one batch of {config.batch_size} on {config.devices} device(s); give more images "
            "(unlabelled ones count), or set a smaller batch_size"
        )


def describe(config: PretrainConfig, images: Sequence[Path], init: Path | None) -> dict[str, Any]:
    """What decides the run's result: configuration, images and starting weights, files by the hash of their bytes."""
    listed = "\n".join(sha256_file(path) for path in images)
    if init is not None and not Path(init).is_file():
        raise FileNotFoundError(f"no weights file {init}")
    return {
        "config": config.model_dump(mode="json"),
        "images": {"n": len(images), "sha256": sha256_bytes(listed.encode())},
        "init": None if init is None else {"name": Path(init).name, "sha256": sha256_file(init)},
    }


def claim(out_dir: Path, description: dict[str, Any]) -> bool:
    """Write config.json, or find it the same; False where the run is already complete.

    What a run left that learnt nothing, or that failed with other settings, is overwritten.

    Raises:
        UserError: the folder holds another run's weights, or this very run diverged in it.
    """
    path = out_dir / CONFIG
    if any((out_dir / name).exists() for name in (BACKBONE, LAST, FAILED)):
        if not path.is_file():
            raise UserError(f"{out_dir} holds weights without their {CONFIG}; give a new folder")
        same = decisive(read_json(path)) == decisive(description)
        failed = read_json(out_dir / FAILED) if (out_dir / FAILED).is_file() else None
        if not same and failed is None:
            raise UserError(
                f"{out_dir} holds a run of another configuration, images or weights; give a new folder or delete it"
            )
        if same and failed is not None and failed["diverged"]:
            raise UserError(f"{out_dir} holds this run, which failed: {failed['reason']}; change a setting")
        if not same:
            for name in (LAST, METRICS):
                (out_dir / name).unlink(missing_ok=True)
        (out_dir / FAILED).unlink(missing_ok=True)
    if (out_dir / BACKBONE).is_file():
        return False
    write_json(path, description)
    return True


def decisive(description: dict[str, Any]) -> dict[str, Any]:
    """A run's description without the settings that change no weight."""
    config = {name: value for name, value in description["config"].items() if name not in WITHOUT_EFFECT}
    return {**description, "config": config}


def accumulation_warnings(config: PretrainConfig) -> list[str]:
    """What summing gradients over batches does not do, in words; empty where it is exact."""
    if config.accumulate == 1:
        return []
    found = []
    if config.method in ("simclr", "swav"):
        what = "negatives" if config.method == "simclr" else "balanced assignments"
        other = "method moco, whose queue holds negatives" if config.method == "simclr" else "a queue (queue_size=3840)"
        found.append(
            f"accumulate={config.accumulate} does not make a larger batch for {config.method}: its {what} come from "
            f"batches of {config.batch_size} all the same; use {other}"
        )
    if config.method in ("byol", "moco") and config.head_norm == "batch":
        found.append(
            f"accumulate={config.accumulate}: BatchNorm still sees batches of {config.batch_size}; it is exact "
            "with head_norm=layer and a backbone without BatchNorm"
        )
    return found


def fit(
    config: PretrainConfig, images: Sequence[Path], out_dir: Path, *, init: Path | None, labels: np.ndarray | None
) -> Any:
    """Run, or resume, the epochs; returns the module, or None on any process but the first."""
    import torch

    from cassava_kit.inference.features import Pixels
    from cassava_kit.training.callbacks import Resume
    from cassava_kit.training.diverged import StopDiverged
    from cassava_kit.training.ssl.callbacks import CollapseWatch, KnnProbe, Metrics, Progress
    from cassava_kit.training.ssl.loader import Images
    from cassava_kit.training.ssl.probe import Probe

    torch.manual_seed(config.seed)
    module = make_module(config, init=init)
    watch = CollapseWatch()
    pixels = Pixels(config.image_size, config.mean, config.std)
    knn = None if labels is None else KnnProbe(Probe(images, labels, pixels, seed=config.seed))
    probes = [] if knn is None else [knn]
    last = out_dir / LAST
    store = out_dir / STORE
    with quiet():
        metrics = Metrics(out_dir / METRICS, watch, knn)
        trainer = make_trainer(config, [StopDiverged(), watch, *probes, metrics, Progress(), Resume(out_dir)])
        try:
            trainer.fit(
                module,
                datamodule=Images(config, images, store),
                ckpt_path=last if last.is_file() else None,
                weights_only=True,
            )
        finally:
            if trainer.is_global_zero:
                store.unlink(missing_ok=True)
    if not trainer.is_global_zero:
        return None
    if knn is not None:
        print(f"{config.name}: {knn.verdict()}")
    return module


def make_module(config: PretrainConfig, *, init: Path | None = None) -> Any:
    """The method's module on the configuration's backbone, random or from a file of weights."""
    import torch

    from cassava_kit.models.network import create_model, sized_args
    from cassava_kit.models.weights import load_weights
    from cassava_kit.training.ssl.byol import BYOL
    from cassava_kit.training.ssl.moco import MoCo
    from cassava_kit.training.ssl.simclr import SimCLR
    from cassava_kit.training.ssl.swav import SwAV

    args = sized_args(config.backbone, config.image_size, config.model_args)
    backbone = create_model(config.backbone, 0, model_args=args)
    if init is not None:
        load_weights(backbone, init)
    methods: dict[str, Any] = {"simclr": SimCLR, "moco": MoCo, "byol": BYOL, "swav": SwAV}
    return methods[config.method](config, backbone.to(memory_format=torch.channels_last))


def make_trainer(config: PretrainConfig, callbacks: list[Any]) -> Any:
    """A Lightning trainer that leaves files and messages to the callbacks given."""
    import lightning.pytorch as pl
    import torch

    on_gpu = config.accelerator == "gpu" or (config.accelerator == "auto" and torch.cuda.is_available())
    return pl.Trainer(
        max_epochs=config.epochs,
        accelerator="gpu" if on_gpu else "cpu",
        devices=config.devices,
        strategy="ddp" if config.devices > 1 else "auto",
        # MoCo wants statistics that differ between devices, and shuffles its keys over them; SyncBatchNorm needs a GPU.
        sync_batchnorm=config.devices > 1 and on_gpu and config.method != "moco",
        precision=config.precision,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_norm,
        use_distributed_sampler=False,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's remarks on hardware, workers and logging intervals out of the way; warnings of ours stay."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*|.*LeafSpec.*|.*lr_scheduler.step.*")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def export(module: Any, path: Path, *, n_images: int, init: Path | None = None) -> None:
    """Write the backbone alone: the keys of `timm.create_model(name, num_classes=0)`, and what made it in the header.

    The header is a checkpoint's with no classes, so `checkpoint.load_model` gives the bare backbone. Where the weights
    that it started from had learnt labels, it says whose.
    """
    from cassava_kit.models.checkpoint import labels_learnt
    from cassava_kit.models.network import sized_args

    config: PretrainConfig = module.config
    info = CheckpointInfo(
        model=config.backbone,
        model_args=sized_args(config.backbone, config.image_size, config.model_args),
        n_classes=0,
        input_size=(config.image_size, config.image_size),
        mean=config.mean,
        std=config.std,
        recipe=config.name,
        config={"method": config.method, "n_images": n_images, "pretrain": config.model_dump(mode="json")},
    )
    before = None if init is None else labels_learnt(Path(init))
    if before is not None:
        split = {name: getattr(before, name) for name in ("competition", "fold", "n_splits", "fold_hash")}
        info = info.model_copy(update={**split, "config": {**info.config, "init": before.name}})
    save_checkpoint(path, module.backbone.state_dict(), info)
