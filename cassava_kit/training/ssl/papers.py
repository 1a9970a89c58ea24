"""What the four papers set."""

from __future__ import annotations

from typing import Any

from cassava_kit.training.ssl.view import View


def paper(method: str) -> dict[str, Any]:
    """The settings of a method's paper that differ from the fields' defaults."""
    if method == "simclr":  # Chen et al. 2020, arXiv:2002.05709: batch 4096, lr .3 x B/256, temperature .1
        return {
            "views": (View(count=2),),
            "optimizer": "lars",
            "base_lr": 0.3,
            "weight_decay": 1e-6,
            "warmup_epochs": 10,
            "hidden_dim": 2048,
            "output_dim": 128,
            "temperature": 0.1,
        }
    if method == "moco":  # MoCo v2: Chen et al. 2020, arXiv:2003.04297; queue and momentum from arXiv:1911.05722
        soft: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
        return {
            "views": (View(count=2, scale=(0.2, 1.0), **soft),),
            "optimizer": "sgd",
            "base_lr": 0.03,
            "weight_decay": 1e-4,
            "warmup_epochs": 0,
            "hidden_dim": 2048,
            "output_dim": 128,
            "head_norm": "none",
            "temperature": 0.2,
            "momentum": 0.999,
            "momentum_end": 0.999,
            "queue_size": 65536,
            "bn_groups": 8,
            "symmetric": False,
        }
    if method == "byol":  # Grill et al. 2020, arXiv:2006.07733: table 6 for the two views, 10 warm-up epochs
        soft = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
        return {
            "views": (View(blur_prob=1.0, **soft), View(blur_prob=0.1, solarize_prob=0.2, **soft)),
            "optimizer": "lars",
            "base_lr": 0.2,
            "weight_decay": 1.5e-6,
            "warmup_epochs": 10,
            "hidden_dim": 4096,
            "output_dim": 256,
            "momentum": 0.996,
            "momentum_end": 1.0,
            "predictor_dim": 4096,
        }
    return {  # Caron et al. 2020, arXiv:2006.09882, with the authors' settings for batches of 256
        "views": (View(count=2, scale=(0.14, 1.0)), View(size=96, count=6, scale=(0.05, 0.14))),
        "optimizer": "lars",
        "base_lr": 0.6,
        "weight_decay": 1e-6,
        "warmup_epochs": 0,
        "hidden_dim": 2048,
        "output_dim": 128,
        "temperature": 0.1,
        "queue_size": 3840,
        "queue_from_epoch": 15,
        "prototypes": 3000,
        "prototypes_frozen_epochs": 1,
        "sinkhorn_eps": 0.05,
        "sinkhorn_iterations": 3,
    }
