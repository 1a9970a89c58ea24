"""Views cut from image files one by one, by lightly's transforms: what the papers do, and the default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightly.transforms import BYOLView1Transform, SimCLRViewTransform, SwaVViewTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.torchvision_v2_compatibility import torchvision_transforms as T

from cassava_kit.training.ssl.config import PretrainConfig
from cassava_kit.training.ssl.view import View


def file_transform(config: PretrainConfig) -> MultiViewTransform:
    """PIL image -> list of normalised view tensors, in the order of the configuration's views."""
    normalize = {"mean": list(config.mean), "std": list(config.std)}
    made = [(view_transform(view, config.method, normalize), view.count) for view in config.views]
    return MultiViewTransform([transform for transform, count in made for _ in range(count)])


def view_transform(view: View, method: str, normalize: dict[str, list[float]]) -> Callable[[Any], Any]:
    """lightly's transform of one view: SwAV's, or, for two views, SimCLR's or (with solarisation) BYOL's."""
    if view.channel_gain or view.spread != 1 or view.background_swap_prob:
        raise ValueError(
            "lightly's transforms have no channel_gain, spread or background_swap_prob; leave them out or set a store"
        )
    shared: dict[str, Any] = {
        "cj_prob": view.jitter_prob,
        "cj_bright": view.brightness,
        "cj_contrast": view.contrast,
        "cj_sat": view.saturation,
        "cj_hue": view.hue,
        "random_gray_scale": view.grayscale_prob,
        "gaussian_blur": view.blur_prob,
        "sigmas": view.blur_sigma,
        "hf_prob": view.hflip_prob,
        "vf_prob": view.vflip_prob,
        "normalize": normalize,
    }
    if method == "swav" or view.scale[1] != 1.0:
        crop = T.RandomResizedCrop(view.size, scale=view.scale)
        after = SwaVViewTransform(**shared) if not view.solarize_prob else None
        if after is None:
            raise ValueError("a view with solarize_prob must have a scale that ends at 1.0, and swav none at all")
        return T.Compose([crop, after])
    if method == "byol":
        return BYOLView1Transform(
            input_size=view.size, min_scale=view.scale[0], solarization_prob=view.solarize_prob, **shared
        )
    if view.solarize_prob:
        raise ValueError(f"{method} has no solarisation with lightly's transforms; set solarize_prob=0 or a store_size")
    return SimCLRViewTransform(input_size=view.size, min_scale=view.scale[0], **shared)
