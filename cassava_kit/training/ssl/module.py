"""What all methods share: backbone, views, optimiser, schedule, momentum after each step, and what is watched."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightly.models.utils import update_momentum
from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor, nn

from cassava_kit.settings import SEED_PRIME
from cassava_kit.training.ssl.batch_views import make_views
from cassava_kit.training.ssl.config import PretrainConfig
from cassava_kit.training.ssl.parts import momentum_at


class SSLModule(pl.LightningModule):
    """Base of the methods. A method makes its heads in __init__ and says its loss of a list of views.

    `loss_of` leaves in `watched` the head's output of the step (and SwAV its scores), by which collapse is seen.
    """

    def __init__(self, config: PretrainConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.feature_dim = check_backbone(backbone, config)
        self.total_steps = 0
        self.watched: Tensor | None = None
        self.watched_scores: Tensor | None = None

    def loss_of(self, views: list[Tensor]) -> Tensor:
        """The method's loss of views [(N, 3, H, W), ...]."""
        raise NotImplementedError

    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(network, its momentum copy) pairs; empty where a method has none."""
        return []

    def before_step(self) -> None:
        """What a method does once before each optimizer step."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> list[Tensor]:
        """Cut views from decoded images on the device; views from files pass through."""
        views = batch if isinstance(batch, list) else self._cut_views(batch)
        return [view.contiguous(memory_format=torch.channels_last) for view in views]

    def _cut_views(self, images: Tensor) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self._batch_seed())
        return make_views(images, self.config.views, mean=self.config.mean, std=self.config.std, generator=generator)

    def _batch_seed(self) -> int:
        epoch, batch = self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_idx
        seed = ((self.config.seed * SEED_PRIME + epoch) * SEED_PRIME + batch) * 1009 + self.global_rank
        return seed % 2**63  # torch takes no larger one

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the network's own randomness (dropout, MoCo's shuffle): a resumed run draws as an unbroken one."""
        torch.manual_seed(self._batch_seed())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch; finite or not, it is looked at by the callbacks."""
        return self.loss_of(batch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One step of the optimiser, and then exactly one of the momentum networks, however many batches it took."""
        step = self.trainer.global_step  # steps done before this one: Lightning counts it only after this hook
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.update_momentum_networks(step)

    def update_momentum_networks(self, step: int) -> None:
        """Move each momentum network towards its own by the schedule's share at optimizer step `step` (0-based)."""
        for network, follower in self.momentum_pairs():
            update_momentum(network, follower, m=self.momentum_now(step))

    def momentum_now(self, step: int) -> float:
        """Share of itself that a momentum network keeps at this step."""
        assert self.config.momentum is not None and self.config.momentum_end is not None
        return momentum_at(step, self.total_steps, self.config.momentum, self.config.momentum_end)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Gradients are whole here: accumulated, averaged over processes and unscaled."""
        self.before_step()

    def configure_optimizers(self) -> Any:
        """LARS, SGD or AdamW; biases and norms without decay; a linear warm-up, then a cosine to zero, by steps."""
        config = self.config
        optimizer = make_optimizer(parameter_groups(self, config.weight_decay), config)
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(config.warmup_epochs * self.total_steps / config.epochs)
        schedule = CosineWarmupScheduler(optimizer, warmup_epochs=warmup, max_epochs=self.total_steps, end_value=0.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with decay, and without it: biases and norms, which LARS then leaves unscaled, as the papers do."""
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in learnt if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(groups: list[dict[str, Any]], config: PretrainConfig) -> torch.optim.Optimizer:
    """The optimiser that the configuration names, at its highest learning rate."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.sgd_momentum)
    return LARS(groups, lr=config.lr, momentum=config.sgd_momentum)


@torch.no_grad()
def check_backbone(backbone: nn.Module, config: PretrainConfig) -> int:
    """Width of the backbone's features; ValueError where it does not take every view's size."""
    training = backbone.training
    backbone.eval()
    width = 0
    for size in {view.size for view in config.views} | {config.image_size}:
        try:
            features = backbone(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"{config.backbone} does not take {size} x {size} pixels ({str(error).splitlines()[0]}); a ViT needs "
                'model_args={"dynamic_img_size": true} for views of several sizes, or img_size for one of its own'
            ) from None
        if features.ndim != 2:
            raise ValueError(f"{config.backbone} must give features (N, D), got {tuple(features.shape)}")
        width = features.shape[1]
    backbone.train(training)
    return width


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any part of a network looks at the whole batch."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
