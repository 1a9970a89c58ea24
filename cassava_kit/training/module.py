"""Lightning module of supervised training: `Classifier`, a timm model with its loss, optimiser and schedule."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cassava_kit.data.transforms import normalize
from cassava_kit.models.network import (
    args_for_size,
    create_model,
    free_stages,
    freeze_backbone,
    image_statistics,
    keep_frozen,
    stage_modules,
)
from cassava_kit.settings import SEED_PRIME
from cassava_kit.training.averaging import make_ema, make_swa
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import Devices, process_rank, shard
from cassava_kit.training.losses import make_loss, mean_without_largest
from cassava_kit.training.optimizers import attach_schedule, lr_scales, make_optimizer, parameter_groups

ImageBatch = tuple[Tensor, Tensor, Tensor]


class Classifier(L.LightningModule):
    """Module that trains on batches (uint8 images (B, 3, H, W), labels (B,), indices (B,)) and logs by epoch.

    `row_weights` (n,), by index, multiply the losses of the training rows; None: all count the same.
    """

    def __init__(
        self,
        config: RunConfig,
        classes: tuple[str, ...],
        steps_per_epoch: int,
        *,
        devices: Devices | None = None,
        row_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.classes, self.n_classes = classes, len(classes)
        self.devices = devices or Devices()
        self.row_weights: Tensor | None
        self.register_buffer("row_weights", row_weights, persistent=False)
        self.total_steps = config.epochs * steps_per_epoch
        self.warmup_steps = round(config.warmup_epochs * steps_per_epoch)
        args = args_for_size(config.model, config.image_size, config.model_args)
        model = create_model(config.model, self.n_classes, model_args=args, head=config.head)
        # Channels last: convolutions run 1.3 to 1.5 times faster on a CPU, and on tensor cores.
        self.model = model.to(memory_format=torch.channels_last)
        self.mean, self.std = image_statistics(self.model)
        self.loss = make_loss(config)
        self.mix = make_mixing(config, self.n_classes)
        self.augment = make_augmentation(config)
        if config.freeze_backbone:
            freeze_backbone(self.model)
        if config.keep_stages is not None:
            free_stages(self.model, config.keep_stages)
        self.ema = make_ema(self.model, config)
        self.swa = make_swa(self.model, config)
        self.train_sums: list[Tensor] = []
        self.val_rows: list[Tensor] = []

    @property
    def inference_model(self) -> nn.Module:
        """Network whose weights are kept: an average where there is one."""
        if self.ema is not None:
            return self.ema.module
        return self.swa.module if self.swa is not None else self.model

    def configure_model(self) -> None:
        """Spread the parameters over the processes, where the strategy is FSDP2."""
        if self.devices.strategy == "fsdp" and not hasattr(self, "sharded"):
            self.model.to(memory_format=torch.contiguous_format)  # all that FSDP2 takes
            shard(self.model, self.device_mesh["data_parallel"], stage_modules(self.model))
            self.sharded = True

    def normalize_images(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, 3, H, W) normalised by the network's mean and std, channels last in memory."""
        return normalize(images, self.mean, self.std).contiguous(memory_format=torch.channels_last)

    def augment_images(self, images: Tensor) -> Tensor:
        """Return normalised images of a training batch, augmented here where `augment_on=device`."""
        return self.normalize_images(images if self.augment is None else self.augment(images))

    def on_train_epoch_start(self) -> None:
        """Seed each epoch by its number, so that a resumed run draws the same random numbers."""
        self.train_sums.clear()
        seed = (self.config.seed * SEED_PRIME + self.current_epoch) % 2**32
        torch.manual_seed(seed + process_rank()[0])
        np.random.seed(seed)
        if self.config.unfreeze_every:
            free_stages(self.model, self.current_epoch // self.config.unfreeze_every)
        self.model.train()  # Lightning leaves what was frozen in the mode it had then
        keep_frozen(self.model)

    def training_step(self, batch: ImageBatch, _: int) -> Tensor:
        """Return the mean loss of one batch, mixed where the configuration says so."""
        images, labels, indices = batch
        mixing = self.mix is not None and self.current_epoch < self.config.epochs - self.config.plain_epochs
        if mixing and len(images) > 1:  # in pairs: the odd image of an only batch is left out of this epoch
            images, labels, indices = (part[: len(part) // 2 * 2] for part in batch)
        images, targets = self.augment_images(images), labels
        if mixing and len(images) > 1:
            images, targets = self.mix(images, labels)
        logits = self.model(images)
        weights = None if self.row_weights is None else self.row_weights[indices]
        n_left_out = self.config.ousm if self.current_epoch >= self.config.ousm_after else 0
        loss = mean_without_largest(self.loss(logits, targets), n_left_out, weights=weights)
        top_targets = targets.argmax(dim=1) if targets.ndim == 2 else targets
        right = (logits.detach().argmax(dim=1) == top_targets).sum()
        # Summed here and logged once an epoch: Lightning's log is slower than a small network's backward pass.
        # The count is filled in on the device; copied there, it would wait for all work.
        self.train_sums.append(torch.stack([loss.detach() * len(images), right, loss.new_full((), len(images))]))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, and update the exponential average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            # timm's warm-up counts from 1; Lightning counts this step only after this hook.
            self.ema.update(self.model, step=self.trainer.global_step + 1)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule of steps; `on_validation_epoch_end` steps a plateau."""
        if metric is None:
            scheduler.step()

    def validation_step(self, batch: ImageBatch, _: int) -> None:
        """Keep cross-entropy (without smoothing, comparable between losses) and predicted class of each image.

        A plain average (SWA) is not validated before the end: until then its BatchNorm statistics are not its own.
        """
        images, targets, indices = batch
        model = self.model if self.swa is not None else self.inference_model
        logits = model(self.normalize_images(images)).float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        self.val_rows.append(torch.stack([indices, losses, logits.argmax(dim=1), targets], dim=1).double())

    def on_validation_epoch_end(self) -> None:
        """Log the means over all validation rows, each counted once, and those of the training epoch.

        Plateau and SWA are stepped here, before `Resume` saves, so that a resumed run does not skip them.
        """
        if self.train_sums:
            loss, right, n = sum_over_processes(torch.stack(self.train_sums).sum(dim=0))
            self.train_sums.clear()
            self.log("train_loss", loss / n)
            self.log("train_accuracy", right / n)
        rows = unique_rows(torch.cat(self.val_rows))
        self.val_rows.clear()
        val_loss = rows[:, 1].mean().float()
        self.log("val_loss", val_loss)
        self.log("val_accuracy", (rows[:, 2] == rows[:, 3]).float().mean())
        for k in range(self.n_classes):
            self.log(f"val_share_{k}", (rows[:, 2] == k).float().mean())
        if self.config.schedule == "plateau":
            self.lr_schedulers().step(val_loss)
        if self.swa is not None and self.current_epoch >= self.config.epochs - self.config.swa_epochs:
            self.swa.update_parameters(self.model)

    def configure_optimizers(self) -> Any:
        """Return the optimiser, its parameters grouped by rate and decay, and its schedule."""
        config, scales = self.config, lr_scales(self.model, self.config)
        optimizer = make_optimizer(
            parameter_groups(self.model, lr=config.lr, weight_decay=config.weight_decay, scales=scales),
            config.optimizer,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=True,
            sharded=self.devices.strategy == "ddp_sharded",
        )
        return attach_schedule(optimizer, config, self.total_steps, self.warmup_steps)


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum over all processes."""
    if process_rank()[1] > 1:
        torch.distributed.all_reduce(values)
    return values


def unique_rows(rows: Tensor) -> Tensor:
    """Return the rows (N, C) of all processes, ordered by their index (first column), each index once."""
    _, world = process_rank()
    if world > 1:
        parts = [torch.empty_like(rows) for _ in range(world)]
        torch.distributed.all_gather(parts, rows.contiguous())
        rows = torch.cat(parts)
    order = torch.argsort(rows[:, 0], stable=True)
    rows = rows[order]
    first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    first[1:] = rows[1:, 0] != rows[:-1, 0]
    return rows[first]


def make_mixing(config: RunConfig, n_classes: int) -> Any:
    """Return timm's mixup and cutmix, or None; smoothing is left to the loss."""
    if not (config.mixup or config.cutmix):
        return None
    from timm.data import Mixup

    return Mixup(config.mixup, config.cutmix, label_smoothing=0.0, num_classes=n_classes)


def make_augmentation(config: RunConfig) -> nn.Module | None:
    """Return kornia's augmentation on the device, or None where the loader augments."""
    if config.augment_on == "cpu":
        return None
    from cassava_kit.data.device_augment import DeviceAugment

    return DeviceAugment(config.augmentation, (config.image_size, config.image_size))
