"""Views cut from image files one by one by lightly's transforms, as the papers do: `file_transform`."""

from __future__ import annotations

from lightly.transforms import BYOLView1Transform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.torchvision_v2_compatibility import torchvision_transforms as T

from cassava_kit.errors import UserError
from cassava_kit.training.ssl.config import PretrainConfig
from cassava_kit.training.ssl.view import ViewConfig


def file_transform(config: PretrainConfig) -> MultiViewTransform:
    """Return a transform: PIL image -> list of normalised view tensors, in the order of the configuration's views."""
    normalize = {"mean": list(config.mean), "std": list(config.std)}
    made = [(view_transform(view, normalize), view.count) for view in config.views]
    return MultiViewTransform([transform for transform, count in made for _ in range(count)])


def view_transform(view: ViewConfig, normalize: dict[str, list[float]]) -> T.Compose:
    """Return the transform of one view: lightly's for BYOL, which has all that the others have, in this crop.

    Raises:
        UserError: the view asks for what lightly's transforms do not have.
    """
    if view.channel_gain or view.spread != 1 or view.background_swap_prob:
        raise UserError(
            "lightly's transforms have no channel_gain, spread or background_swap_prob; leave them out or set a "
            "store_size"
        )
    steps = BYOLView1Transform(
        input_size=view.size,
        cj_prob=view.jitter_prob,
        cj_bright=view.brightness,
        cj_contrast=view.contrast,
        cj_sat=view.saturation,
        cj_hue=view.hue,
        random_gray_scale=view.grayscale_prob,
        gaussian_blur=view.blur_prob,
        solarization_prob=view.solarize_prob,
        sigmas=view.blur_sigma,
        hf_prob=view.hflip_prob,
        vf_prob=view.vflip_prob,
        normalize=normalize,
    ).transform.transforms
    return T.Compose([T.RandomResizedCrop(view.size, scale=view.scale), *steps[1:]])
