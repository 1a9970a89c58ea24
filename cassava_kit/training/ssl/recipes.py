"""Named pretraining runs, each a function that returns a configuration; `pretrain_recipe` finds one by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cassava_kit.errors import UserError, closest
from cassava_kit.training.small_recipes import small_ssl_resnet
from cassava_kit.training.ssl.config import PretrainConfig
from cassava_kit.training.ssl.methods import SSL_METHODS, configure
from cassava_kit.training.ssl.view import ViewConfig


def byol_resnet50() -> PretrainConfig:
    """BYOL on the training images, 81 epochs in batches of 256 (published for this data: .81 after finetuning)."""
    return configure("byol", name="byol_resnet50", epochs=81, batch_size=256, precision="16-mixed", num_workers=8)


def swav_resnet50() -> PretrainConfig:
    """SwAV, with 100 prototypes as for few classes (published for this data: .71 after finetuning)."""
    return configure(
        "swav",
        name="swav_resnet50",
        epochs=81,
        batch_size=256,
        prototypes=100,
        precision="16-mixed",
        num_workers=8,
    )


def simclr_resnet50() -> PretrainConfig:
    """SimCLR with temperature .2 for batches of 256; the paper's .1 is for 4,096."""
    return configure(
        "simclr",
        name="simclr_resnet50",
        epochs=81,
        batch_size=256,
        temperature=0.2,
        precision="16-mixed",
        num_workers=8,
    )


def moco_resnet50() -> PretrainConfig:
    """MoCo v2 with a queue of 4,096, since 65,536 would hold each of the 21,397 images three times."""
    return configure(
        "moco",
        name="moco_resnet50",
        epochs=81,
        batch_size=256,
        queue_size=4096,
        precision="16-mixed",
        num_workers=8,
    )


def small(method: str, **settings: Any) -> PretrainConfig:
    """Return a method on the small ResNet, for minutes on two CPU cores; the papers' settings are for other sizes."""
    member = small_ssl_resnet()
    shared: dict[str, Any] = {
        "backbone": member.model,
        "model_args": member.model_args,
        "image_size": member.image_size,
        "views": (small_view(count=2),),
        "store_size": (72, 96),
        "epochs": 18,
        "batch_size": 64,
        "optimizer": "adamw",
        "base_lr": 1.6e-2,
        "weight_decay": 1e-2,
        "warmup_epochs": 1,
        "hidden_dim": 256,
        "output_dim": 64,
    }
    return configure(method, name=f"small_{method}", **{**shared, **settings})


def small_view(**settings: Any) -> ViewConfig:
    """Return a crop of 40 pixels with another image's background, whose colours change too little to hide a disease."""
    colours = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.3, "hue": 0.05, "grayscale_prob": 0.0}
    place = {"size": 40, "scale": (0.3, 1.0), "vflip_prob": 0.5, "background_swap_prob": 1.0}
    return ViewConfig(**{**colours, **place, "blur_prob": 0.0, **settings})


def small_simclr() -> PretrainConfig:
    """SimCLR of the small ResNet."""
    return small("simclr", temperature=0.2)


def small_moco() -> PretrainConfig:
    """MoCo of the small ResNet: a queue and a momentum for some hundred steps, both directions."""
    settings = {"queue_size": 512, "bn_groups": 2, "momentum": 0.97, "momentum_end": 0.99, "symmetric": True}
    return small("moco", temperature=0.2, head_norm="batch", **settings)


def small_byol() -> PretrainConfig:
    """BYOL of the small ResNet: a momentum that moves the target within some hundred steps."""
    view = small_view()
    return small("byol", views=(view, view), momentum=0.95, momentum_end=1.0, predictor_dim=256)


def small_swav() -> PretrainConfig:
    """SwAV of the small ResNet: 30 frozen prototypes, sharper assignments, and crops with a larger overlap.

    With the other methods' crops all prototypes soon get the same probability, and the loss stays at ln(30): a random
    network's assignments of two such crops have nothing in common that could be learnt.
    """
    settings = {"prototypes": 30, "prototypes_frozen_epochs": 60, "queue_size": 0, "queue_from_epoch": 0}
    view = small_view(count=2, background_swap_prob=0.6, scale=(0.5, 1.0))
    return small("swav", views=(view,), sinkhorn_eps=0.03, temperature=0.1, base_lr=4e-3, epochs=60, **settings)


PRETRAIN_RECIPES: tuple[Callable[[], PretrainConfig], ...] = (
    byol_resnet50,
    swav_resnet50,
    simclr_resnet50,
    moco_resnet50,
    small_simclr,
    small_moco,
    small_byol,
    small_swav,
)


def pretrain_recipe(name: str) -> PretrainConfig:
    """Return the configuration of a recipe, or of a method's name: its paper's.

    Raises:
        UserError: there is no recipe and no method of this name.
    """
    for function in PRETRAIN_RECIPES:
        if function.__name__ == name:
            return function()
    if name in SSL_METHODS:
        return configure(name, name=name)
    recipes = [function.__name__ for function in PRETRAIN_RECIPES]
    raise UserError(
        f"no pretraining run {name!r}{closest(name, [*SSL_METHODS, *recipes])}; there are the methods "
        f"{', '.join(SSL_METHODS)}, as in their papers, and the recipes {', '.join(recipes)}"
    )
