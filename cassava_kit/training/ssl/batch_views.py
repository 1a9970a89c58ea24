"""Views cut from a whole batch of decoded images at once, on the batch's device: `cut_views`.

lightly's transforms (`file_views.py`) are the published ones and the default, but they work image by image through
PIL: two 48-pixel views of one image take about a millisecond, more than a small network's step on it. Here a crop with
its mirror is one affine map, all colour operations together are one 3 x 3 matrix and an offset, and a batch needs two
calls. Two differences from torchvision: colours are clamped once, at the end, and hue is rotated in the YIQ plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cassava_kit.data.transforms import constant
from cassava_kit.training.ssl.view import ViewConfig

LUMA = (0.299, 0.587, 0.114)
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
ASPECTS = (3 / 4, 4 / 3)
DISC_RADIUS, DISC_EDGE = (0.25, 0.5), 0.03  # of the image's height


def cut_views(
    images: Tensor,
    views: Sequence[ViewConfig],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    generator: torch.Generator,
) -> list[Tensor]:
    """Return normalised views [(N, 3, size, size), ...] of uint8 images (N, 3, H, W), in the order of `views`."""
    pixels = images.float().div_(255)
    drawn = (draw_view(pixels, view, generator) for view in views for _ in range(view.count))
    centre, spread = (constant(tuple(values), pixels.device).view(3, 1, 1) for values in (mean, std))
    return [view.sub_(centre).div_(spread) for view in drawn]


def draw_view(pixels: Tensor, view: ViewConfig, generator: torch.Generator) -> Tensor:
    """Return one view (N, 3, size, size) of each image (N, 3, H, W), both in 0..1."""
    n, _, height, width = pixels.shape
    if view.background_swap_prob:
        pixels = swap_backgrounds(pixels, view.background_swap_prob, generator)
    boxes = draw_boxes(n, (height, width), view, generator)
    crops = crop(pixels, boxes, view.size, flips=draw_flips(n, view, generator))
    crops = recolour(crops, view, generator).clamp_(0, 1)
    if view.blur_prob:
        crops = blur_some(crops, view, generator)
    if view.solarize_prob:
        chosen = to_device(coin(n, view.solarize_prob, generator), crops.device)[:, None, None, None]
        crops = torch.where(chosen & (crops >= 0.5), 1 - crops, crops)
    return crops


def swap_backgrounds(pixels: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Replace each image outside a soft central disc by the same pixels of another image (N, 3, H, W).

    Two views of one image share its background. A small data set can be told apart by backgrounds alone, and nothing
    else is learnt then. Swapping them removes that shortcut (Ryali et al. 2021, arXiv:2103.12719), here without masks,
    for photographs with the subject in the middle.
    """
    n, _, height, width = pixels.shape
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    radius = uniform((n, 1, 1, 1), *DISC_RADIUS, generator) * height
    disc = to_device(torch.sigmoid((radius - (x.square() + y.square()).sqrt()) / (DISC_EDGE * height)), pixels.device)
    disc = torch.where(to_device(coin(n, probability, generator), pixels.device)[:, None, None, None], disc, 1)
    others = pixels.roll(int(torch.randint(1, max(n, 2), (), generator=generator)), dims=0)
    return others + disc * (pixels - others)


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Return what was drawn on the host on a device; from pinned memory, so that neither waits for the other."""
    return drawn if device.type == "cpu" else drawn.pin_memory().to(device, non_blocking=True)


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return uniform random numbers in low..high."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def coin(n: int, probability: float, generator: torch.Generator) -> Tensor:
    """Return (n,) booleans, each True with this probability."""
    return torch.rand(n, generator=generator) < probability


def draw_boxes(n: int, size: tuple[int, int], view: ViewConfig, generator: torch.Generator) -> Tensor:
    """Return random crops (n, 4): centre x, centre y, half width, half height, in 0..1 of the image.

    Area and aspect ratio are those of torchvision's RandomResizedCrop; a side that would not fit is cut to the image's.
    """
    height, width = size
    area = uniform((n,), *view.scale, generator) * height * width
    aspect = uniform((n,), math.log(ASPECTS[0]), math.log(ASPECTS[1]), generator).exp()
    half_w = ((area * aspect).sqrt() / width).clamp(max=1) / 2
    half_h = ((area / aspect).sqrt() / height).clamp(max=1) / 2
    centre_x = 0.5 + uniform((n,), -0.5, 0.5, generator) * (1 - 2 * half_w) * view.spread
    centre_y = 0.5 + uniform((n,), -0.5, 0.5, generator) * (1 - 2 * half_h) * view.spread
    return torch.stack([centre_x, centre_y, half_w, half_h], dim=1)


def draw_flips(n: int, view: ViewConfig, generator: torch.Generator) -> Tensor:
    """Return signs (n, 2) of x and y; -1 mirrors."""
    signs = [1 - 2 * coin(n, p, generator).float() for p in (view.hflip_prob, view.vflip_prob)]
    return torch.stack(signs, dim=1)


def crop(pixels: Tensor, boxes: Tensor, size: int, *, flips: Tensor) -> Tensor:
    """Resize each image's box to (size, size), bilinear; a crop much larger than `size` is averaged down.

    `boxes` (n, 4) and `flips` (n, 2) lie on the host, where the number of samples is decided.
    """
    n, channels, height, width = pixels.shape
    # grid_sample reads four pixels a point, so that a crop more than twice its target would alias: sample larger first.
    largest = float((2 * boxes[:, 2:].amax(dim=0) * boxes.new_tensor([width, height])).amax())
    factor = max(1, round(largest / size / 2))
    theta = boxes.new_zeros(n, 2, 3)
    theta[:, 0, 0] = 2 * boxes[:, 2] * flips[:, 0]
    theta[:, 1, 1] = 2 * boxes[:, 3] * flips[:, 1]
    theta[:, :, 2] = 2 * boxes[:, :2] - 1
    grid = F.affine_grid(
        to_device(theta, pixels.device), [n, channels, size * factor, size * factor], align_corners=False
    )
    sampled = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, factor) if factor > 1 else sampled


def recolour(pixels: Tensor, view: ViewConfig, generator: torch.Generator) -> Tensor:
    """Apply colour jitter, channel gains and grayscale, as one affine map of RGB for each image."""
    n = len(pixels)
    matrix, offset = colour_maps(pixels.mean(dim=(2, 3)), view, generator)
    flat = torch.baddbmm(offset[:, :, None], matrix, pixels.reshape(n, 3, -1))
    return flat.reshape(pixels.shape)


def colour_maps(means: Tensor, view: ViewConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return matrices (n, 3, 3) and offsets (n, 3) of a random colour jitter of images with these means (n, 3).

    Brightness scales, contrast scales about the mean gray, saturation mixes with gray, hue rotates the colour plane.
    Each is affine, and so is their product, which is taken in a random order for each image.
    """
    n, device = len(means), means.device
    eye, luma = torch.eye(3), torch.tensor(LUMA)
    order = torch.rand(n, 4, generator=generator).argsort(dim=1)
    strength = {
        name: uniform((n,), 1 - amount, 1 + amount, generator)[:, None, None]
        for name, amount in (("b", view.brightness), ("c", view.contrast), ("s", view.saturation))
    }
    fixed = torch.stack(
        [
            strength["b"] * eye,
            strength["c"] * eye,
            strength["s"] * eye + (1 - strength["s"]) * luma.expand(3, 3),
            hue_matrices(uniform((n,), -view.hue, view.hue, generator)),
        ],
        dim=1,
    )
    jittered = coin(n, view.jitter_prob, generator)
    gain = uniform((n, 3), 1 - view.channel_gain, 1 + view.channel_gain, generator)
    drop = coin(n, view.grayscale_prob, generator)
    # The draws go to the means, not the means to the draws: that would wait for all that the device has to do.
    ordered = fixed[torch.arange(n)[:, None], order]
    drawn = (ordered, order == 1, 1 - strength["c"][:, 0], jittered, gain, drop, luma)
    ordered, is_contrast, toward_gray, jittered, gain, drop, luma = (to_device(one, device) for one in drawn)
    matrix, offset = torch.eye(3, device=device).repeat(n, 1, 1), torch.zeros(n, 3, device=device)
    for position in range(4):
        step = ordered[:, position]
        now = torch.einsum("nij,nj->ni", matrix, means) + offset
        mean_gray = (now * luma).sum(dim=1, keepdim=True).expand(n, 3)
        shift = torch.where(is_contrast[:, position, None], toward_gray * mean_gray, 0.0)
        matrix = torch.where(jittered[:, None, None], step @ matrix, matrix)
        offset = torch.where(jittered[:, None], torch.einsum("nij,nj->ni", step, offset) + shift, offset)
    matrix, offset = gain[:, :, None] * matrix, gain * offset
    gray = luma.expand(3, 3)
    matrix = torch.where(drop[:, None, None], gray @ matrix, matrix)
    offset = torch.where(drop[:, None], offset @ gray.T, offset)
    return matrix, offset


def hue_matrices(turns: Tensor) -> Tensor:
    """Return maps of RGB (n, 3, 3) that rotate hue by these shares of a circle and keep the luminance."""
    to_yiq = torch.tensor(RGB_TO_YIQ)
    angle = 2 * math.pi * turns
    turn = torch.eye(3).repeat(len(turns), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2] = -angle.sin()
    turn[:, 2, 1] = angle.sin()
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq


def blur_some(pixels: Tensor, view: ViewConfig, generator: torch.Generator) -> Tensor:
    """Blur a random share of the images, each by its own sigma."""
    chosen = coin(len(pixels), view.blur_prob, generator).nonzero()[:, 0]
    if not len(chosen):
        return pixels
    sigma = uniform((len(chosen),), *view.blur_sigma, generator)
    index = to_device(chosen, pixels.device)
    pixels[index] = gaussian_blur(pixels[index], sigma)
    return pixels


def gaussian_blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Return images (N, C, H, W) blurred by Gaussians of sigma (N,) pixels, on the host; borders are replicated."""
    n, channels, height, width = pixels.shape
    radius = min(math.ceil(3 * float(sigma.max())), min(height, width) - 1)
    at = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (at / sigma[:, None]) ** 2)
    kernel = to_device((kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0), pixels.device)
    flat = F.pad(pixels.reshape(1, n * channels, height, width), [radius] * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * channels)
    return flat.reshape(pixels.shape)
