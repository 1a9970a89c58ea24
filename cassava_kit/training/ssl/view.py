"""Settings of the views of an image: `ViewConfig`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ViewConfig(BaseModel):
    """How one view of an image is drawn, or `count` of one kind; strengths are torchvision's ColorJitter arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=224, ge=8, le=1024, description="Side of the square crop in pixels.")
    count: int = Field(default=1, ge=1, le=16, description="How many views are drawn this way.")
    scale: tuple[float, float] = Field(
        default=(0.08, 1.0), description="Smallest and largest share of the image's area in a crop."
    )
    spread: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="How far a crop may move from the centre; 0: not at all, 1: anywhere.",
    )
    background_swap_prob: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Probability that everything outside a central disc comes from another image of the batch.",
    )
    brightness: float = Field(default=0.8, ge=0, le=1, description="Brightness is multiplied by 1 - b .. 1 + b.")
    contrast: float = Field(default=0.8, ge=0, le=1, description="Contrast is multiplied by 1 - c .. 1 + c.")
    saturation: float = Field(default=0.8, ge=0, le=1, description="Saturation is multiplied by 1 - s .. 1 + s.")
    hue: float = Field(default=0.2, ge=0, le=0.5, description="Hue is turned by -h .. h of a full circle.")
    channel_gain: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Each colour channel is multiplied by its own factor in 1 - g .. 1 + g.",
    )
    jitter_prob: float = Field(default=0.8, ge=0, le=1, description="Probability of the colour jitter.")
    grayscale_prob: float = Field(default=0.2, ge=0, le=1, description="Probability of dropping the colour.")
    blur_prob: float = Field(default=0.5, ge=0, le=1, description="Probability of a Gaussian blur.")
    blur_sigma: tuple[float, float] = Field(
        default=(0.1, 2.0), description="Smallest and largest standard deviation of the blur in pixels."
    )
    solarize_prob: float = Field(
        default=0.0, ge=0, le=1, description="Probability of inverting what is brighter than one half."
    )
    hflip_prob: float = Field(default=0.5, ge=0, le=1, description="Probability of mirroring left and right.")
    vflip_prob: float = Field(default=0.0, ge=0, le=1, description="Probability of mirroring top and bottom.")

    @model_validator(mode="after")
    def _ranges(self) -> ViewConfig:
        for name, (low, high), top in (("scale", self.scale, 1.0), ("blur_sigma", self.blur_sigma, 16.0)):
            if not 0 < low <= high <= top:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high <= {top:g}, got ({low}, {high})")
        return self
