"""What all methods share, `SSLModule`: backbone, views, optimiser, schedule, and the momentum networks' steps."""

from __future__ import annotations

from typing import Any, ClassVar

import lightning as L
import torch
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor, nn

from cassava_kit.errors import UserError
from cassava_kit.settings import SEED_PRIME
from cassava_kit.training.optimizers import make_optimizer, parameter_groups
from cassava_kit.training.ssl.batch_views import cut_views
from cassava_kit.training.ssl.config import MomentumConfig, PretrainConfig
from cassava_kit.training.ssl.parts import momentum_at


class SSLModule(L.LightningModule):
    """Base of the methods. A method makes its heads in __init__ and computes its loss from a list of views.

    `compute_loss` leaves in `embeddings` the head's output of the step (N, d), and in `scores` those against prototypes
    where there are any; collapse is measured on both.
    """

    config_class: ClassVar[type[PretrainConfig]]

    def __init__(self, config: PretrainConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.feature_dim = check_backbone(backbone, config)
        self.total_steps = 0
        self.embeddings: Tensor | None = None
        self.scores: Tensor | None = None

    def compute_loss(self, views: list[Tensor]) -> Tensor:
        """Return the method's loss of views [(N, 3, H, W), ...]."""
        raise NotImplementedError

    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return (network, its momentum copy) pairs; empty where a method has none."""
        return []

    def before_step(self) -> None:
        """Do what a method does once before each optimizer step."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> list[Tensor]:
        """Cut views from decoded images on the device; views from files are kept as they are."""
        views = batch if isinstance(batch, list) else self._cut_views(batch)
        return [view.contiguous(memory_format=torch.channels_last) for view in views]

    def _cut_views(self, images: Tensor) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self._batch_seed())
        return cut_views(images, self.config.views, mean=self.config.mean, std=self.config.std, generator=generator)

    def _batch_seed(self) -> int:
        epoch, batch = self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_idx
        seed = ((self.config.seed * SEED_PRIME + epoch) * SEED_PRIME + batch) * 1009 + self.global_rank
        return seed % 2**63  # torch takes no larger one

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the network's own randomness (dropout, MoCo's shuffle): a resumed run draws as an unbroken one."""
        torch.manual_seed(self._batch_seed())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return self.compute_loss(batch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take one step of the optimiser, then exactly one of the momentum networks, however many batches it took."""
        step = self.trainer.global_step  # steps done before this one: Lightning counts it only after this hook
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.update_momentum_networks(step)

    def update_momentum_networks(self, step: int) -> None:
        """Move each momentum network towards its own by the schedule's share at optimizer step `step` (0-based)."""
        for network, follower in self.momentum_pairs():
            update_momentum(network, follower, m=self.momentum_share(step))

    def momentum_share(self, step: int) -> float:
        """Return the share of itself that a momentum network keeps at this step."""
        assert isinstance(self.config, MomentumConfig)
        return momentum_at(step, self.total_steps, self.config.momentum, self.config.momentum_end)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Gradients are whole here: accumulated, averaged over processes and unscaled."""
        self.before_step()

    def configure_optimizers(self) -> Any:
        """Return LARS, SGD or AdamW, without decay for biases and norms; linear warm-up, then a cosine to zero."""
        config = self.config
        groups = parameter_groups(self, lr=config.lr, weight_decay=config.weight_decay)
        optimizer = make_optimizer(groups, config.optimizer, lr=config.lr, momentum=config.sgd_momentum)
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(config.warmup_epochs * self.total_steps / config.epochs)
        schedule = CosineWarmupScheduler(optimizer, warmup_epochs=warmup, max_epochs=self.total_steps, end_value=0.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def check_backbone(backbone: nn.Module, config: PretrainConfig) -> int:
    """Return the width of the backbone's features.

    Raises:
        UserError: the backbone does not take every view's size, or gives no features (N, D).
    """
    training = backbone.training
    backbone.eval()
    width = 0
    for size in {view.size for view in config.views} | {config.image_size}:
        try:
            features = backbone(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"{config.backbone} does not take {size} x {size} pixels ({str(error).splitlines()[0]}); a ViT needs "
                'views of image_size, or model_args={"dynamic_img_size": true}'
            ) from None
        if features.ndim != 2:
            raise UserError(f"{config.backbone} must give features (N, D), got {tuple(features.shape)}")
        width = features.shape[1]
    backbone.train(training)
    return width
