"""Networks that half precision spoils, by timm name: `half_is_wrong`, `half_is_risky`."""

from __future__ import annotations

WRONG = "dinov3"
RISKY = "convnextv2"


def half_is_wrong(model: str) -> bool:
    """Return whether a timm model gives wrong features in float16, without an error: DINOv3 of any size.

    Example:
        >>> half_is_wrong("vit_small_patch16_dinov3.lvd1689m"), half_is_wrong("vit_small_patch14_dinov2.lvd142m")
        (True, False)
    """
    return WRONG in model


def half_is_risky(model: str) -> bool:
    """Return whether a timm model may overflow in float16: ConvNeXt V2, whose norm sums squares over the image."""
    return model.startswith(RISKY)
