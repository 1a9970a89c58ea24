"""Pretrain a backbone on images without labels, `pretrain`, and export it as plain timm weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cassava_kit.errors import UserError
from cassava_kit.training.ssl.config import PretrainConfig
from cassava_kit.training.ssl.run_folder import (
    BACKBONE,
    LAST,
    METRICS,
    STORE,
    claim_folder,
    describe_images,
    describe_settings,
    refuse_other_run,
    whole_images,
    write_failure,
)

if TYPE_CHECKING:
    from cassava_kit.training.devices import Devices
    from cassava_kit.training.ssl.module import SSLModule


def pretrain(
    config: PretrainConfig,
    images: Sequence[Path],
    out_dir: Path,
    *,
    init: Path | None = None,
    labels: Sequence[int] | np.ndarray | None = None,
    existing: Literal["refuse", "replace", "keep"] = "refuse",
) -> Path:
    """Pretrain on these images and return `out_dir/backbone.safetensors`: plain timm weights with the kit's header.

    `init` is a file of weights to start from. `labels` (N,), -1 where unknown, are for the kNN probe alone and never
    reach the loss. Beside the backbone lie config.json, metrics.csv and last.ckpt: the same call goes on after a kill,
    and returns at once when the run is complete. `existing` says what is done with a run that differs: refuse, replace,
    or keep (where only the code differs).

    Raises:
        UserError: labels, images, settings or folder do not fit; before slow work.
        DivergedError: the loss is not finite.
        CollapseError: the embeddings no longer tell images apart, and `on_collapse` is stop.

    After the last two the folder holds failed.json with the reason; a call with other settings starts anew in it.
    """
    images, out_dir = [Path(path) for path in images], Path(out_dir)
    known, settings = check_labels(labels, len(images)), describe_settings(config, init)
    refuse_other_run(out_dir, settings, existing=existing)  # before the images are read and hashed
    whole = set(whole_images(images))
    kept = np.array([path in whole for path in images])
    if not kept.all():
        warnings.warn(f"left out {(~kept).sum()} of {len(images)} images that are not whole", stacklevel=2)
    images, known = [path for path in images if path in whole], None if known is None else known[kept]
    check_batch(config, len(images))
    if not claim_folder(out_dir, {**settings, "images": describe_images(images)}, existing=existing):
        return out_dir / BACKBONE
    from cassava_kit.training.diverged import DivergedError  # Lightning takes seconds to import: not for a finished run
    from cassava_kit.training.ssl.collapse import CollapseError

    if config.accumulate > 1 and (warning := config.accumulation_warning()):
        warnings.warn(warning, stacklevel=2)
    try:
        module = run_epochs(config, images, out_dir, init=init, labels=known)
    except (DivergedError, CollapseError) as error:
        write_failure(out_dir, str(error), diverged=isinstance(error, DivergedError))
        raise
    if module is not None:
        export_backbone(module, out_dir / BACKBONE, n_images=len(images), init=init)
    return out_dir / BACKBONE


def check_labels(labels: Sequence[int] | np.ndarray | None, n: int) -> np.ndarray | None:
    """Return labels as an integer array (n,), or None; UserError where they are not one for each image."""
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.shape != (n,) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"labels must be {n} whole numbers, one an image (-1 where unknown), got {array.shape} {array.dtype}"
        )
    return array


def check_batch(config: PretrainConfig, n: int) -> None:
    """Raise UserError where the images do not fill one batch on every device."""
    needed = config.batch_size * config.devices
    if n < needed:
        raise UserError(
            f"{n} images do not fill one batch of {config.batch_size} on {config.devices} device(s); give more images "
            "(unlabelled ones count), or set a smaller batch_size"
        )


def run_epochs(
    config: PretrainConfig, images: Sequence[Path], out_dir: Path, *, init: Path | None, labels: np.ndarray | None
) -> SSLModule | None:
    """Run, or resume, the epochs; return the module, or None on any process but the first."""
    import torch

    from cassava_kit.data.progress import show_progress
    from cassava_kit.inference.features import Pixels
    from cassava_kit.training.callbacks import Bar, Resume
    from cassava_kit.training.devices import Devices, is_main
    from cassava_kit.training.diverged import StopDiverged
    from cassava_kit.training.ssl.callbacks import CollapseWatch, KnnProbe, PretrainMetrics
    from cassava_kit.training.ssl.loader import PretrainImages
    from cassava_kit.training.ssl.methods import make_ssl_module
    from cassava_kit.training.ssl.probe import KnnHalves
    from cassava_kit.training.trainer import make_trainer, quiet_lightning, run_fit

    devices = Devices(config.devices, accelerator=config.accelerator)
    torch.manual_seed(config.seed)
    module = make_ssl_module(config, init=init)
    watch = CollapseWatch()
    pixels = Pixels(config.image_size, config.mean, config.std)
    knn = None if labels is None else KnnProbe(KnnHalves(images, labels, pixels, seed=config.seed))
    metrics = PretrainMetrics(out_dir / METRICS, watch, knn)
    last, store = out_dir / LAST, out_dir / STORE
    shown = show_progress() if is_main() else nullcontext()
    with quiet_lightning(), pretraining_threads(config, devices), shown as display:
        bars = [] if display is None else [Bar(display, metrics, label=pretraining_label(config), column="loss")]
        probes = [] if knn is None else [knn]
        trainer = make_trainer(
            config,
            [StopDiverged(), watch, *probes, metrics, *bars, Resume(out_dir)],
            devices=devices,
            sync_batchnorm=config.sync_batchnorm,
        )
        try:
            run_fit(
                trainer,
                module,
                datamodule=PretrainImages(config, images, store),
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


def pretraining_threads(config: PretrainConfig, devices: Devices) -> AbstractContextManager[None]:
    """Return the context in which a CPU pretrains: one thread for a small network, as for a fold; else torch's own."""
    from cassava_kit.training.devices import uses_gpu
    from cassava_kit.training.side_by_side import is_small, use_threads

    size = max(view.size for view in config.views)
    seen = config.batch_size * sum(view.count for view in config.views)
    if uses_gpu(devices) or devices.processes > 1 or not is_small(config.backbone, size, config.model_args, seen):
        return nullcontext()
    return use_threads(1)


def pretraining_label(config: PretrainConfig) -> str:
    """Return the name of a pretraining's bar."""
    return f"pretraining ({config.method})"


def export_backbone(module: SSLModule, path: Path, *, n_images: int, init: Path | None = None) -> None:
    """Write the backbone alone: the keys of `timm.create_model(name, num_classes=0)`, and what made it in the header.

    The header is a checkpoint's with no classes, so that `load_model` gives the bare backbone. Where the weights that
    it started from had learnt labels, it names them and their split.
    """
    from cassava_kit.models.checkpoint import CheckpointInfo, labels_learnt, save_checkpoint
    from cassava_kit.models.network import args_for_size

    config = module.config
    info = CheckpointInfo(
        model=config.backbone,
        model_args=args_for_size(config.backbone, config.image_size, config.model_args),
        n_classes=0,
        input_size=(config.image_size, config.image_size),
        mean=config.mean,
        std=config.std,
        recipe=config.name,
        config={"method": config.method, "n_images": n_images, "pretrain": config.model_dump(mode="json")},
    )
    before = None if init is None else labels_learnt(Path(init))
    if before is not None:
        split = {name: getattr(before, name) for name in ("competition", "classes", "fold", "n_splits", "fold_hash")}
        info = info.model_copy(update={**split, "config": {**info.config, "init": before.name}})
    save_checkpoint(path, module.backbone.state_dict(), info)
