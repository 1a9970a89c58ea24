"""Draw cassava leaves in five conditions, for the embedded sample competition. Entry point: `draw_photo`.

A picture depends on its label and one random generator alone. Lengths are pixels of the final picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cassava_kit.data.sample.scenery import (
    HEIGHT,
    WIDTH,
    Image,
    Plane,
    Points,
    Rng,
    background,
    cast_shadow,
    mix,
    noise,
    occlude,
    on_stencil,
    photograph,
    polygon,
    random_point,
    rgb,
    shrink,
    soft_step,
    soften,
    stencil,
)

BLIGHT, STREAK, MOTTLE, MOSAIC, HEALTHY = range(5)


@dataclass(frozen=True)
class Leaf:
    """One leaf: its coverage, shading and veins as planes 0..1, the midrib of each lobe, its size (1: usual)."""

    mask: Plane
    shade: Plane
    veins: Plane
    side_veins: Plane
    lobes: list[Points]
    scale: float


def draw_photo(label: int, rng: Rng) -> np.ndarray:
    """Draw a photograph of a leaf in the condition `label` (0..4): (120, 160, 3) uint8 RGB."""
    image = background(rng)
    severity = rng.beta(2.6, 1.3)
    light = rng.uniform(0.8, 1.25) * (1 + 0.12 * noise(rng, 65))
    for leaf in _leaves(label, rng):
        image = cast_shadow(image, leaf.mask, rng)
        image = mix(image, _paint(leaf, label, severity, rng) * light[..., None], leaf.mask)
    return photograph(occlude(image, rng), rng)


# --- the leaf ------------------------------------------------------------------------------------------------------


def _leaves(label: int, rng: Rng) -> list[Leaf]:
    """Draw the leaf of the picture, sometimes before a second one of the same plant."""
    leaves = []
    if rng.random() < 0.35:
        leaves.append(_leaf(label, rng, centre=random_point(rng), radius=rng.uniform(40, 60)))
    middle = np.array([WIDTH / 2, HEIGHT / 2]) + rng.uniform(-12, 12, 2)
    leaves.append(_leaf(label, rng, centre=middle, radius=rng.uniform(56, 82)))
    return leaves


def _leaf(label: int, rng: Rng, *, centre: np.ndarray, radius: float) -> Leaf:
    """Draw a palmate leaf of 5 to 7 lobes around `centre`; mosaic disease makes the lobes narrow and bent."""
    import cv2

    n_lobes, turn, spread = int(rng.integers(5, 8)), rng.uniform(0, 2 * np.pi), rng.uniform(0.70, 0.88) * np.pi
    bad = {MOSAIC: 0.8, MOTTLE: 0.35}.get(label, 0.15)
    width = radius * rng.uniform(1.15, 1.55) / (n_lobes + 1.5) * rng.uniform(1 - 0.3 * bad, 1)
    sheets = np.stack([stencil() for _ in range(4)])
    stalk = centre - 1.2 * radius * np.array([np.cos(turn), np.sin(turn)])
    cv2.line(sheets[0], on_stencil(centre), on_stencil(stalk), 255, round(0.09 * radius), cv2.LINE_AA)
    lobes = []
    for position in np.linspace(-1, 1, n_lobes):
        length = radius * (1 - 0.38 * abs(position) ** 1.5) * rng.uniform(1 - 0.25 * bad, 1.05)
        bend = rng.normal(0, 0.12 + 0.35 * bad) + 0.25 * position
        lobes.append(_midrib(centre, turn + spread * position, length=length, bend=bend))
        _draw_lobe(sheets, lobes[-1], width=width * rng.uniform(0.85, 1.1), wave=rng.normal(0, 0.05 + 0.2 * bad, 4))
    mask, shade, veins, side_veins = map(shrink, sheets)
    return Leaf(mask, shade, veins, side_veins, lobes, radius / 65)


def _midrib(centre: np.ndarray, angle: float, *, length: float, bend: float) -> Points:
    """Return points along the middle of a lobe, which turns by `bend` radians towards its tip."""
    direction = angle + bend * np.linspace(0, 1, 15)
    steps = np.stack([np.cos(direction), np.sin(direction)], axis=1) * (length / 14)
    return centre + np.cumsum(steps, axis=0) - steps[0]


def _draw_lobe(sheets: np.ndarray, midrib: Points, *, width: float, wave: np.ndarray) -> None:
    """Draw a lobe into the sheets of mask, shade, veins and side veins; `wave` makes its edge uneven."""
    import cv2

    t = np.linspace(0, 1, len(midrib))
    half = width * (np.sin(np.pi * t**0.8) ** 0.85 * (0.75 + 0.35 * t) + 0.14 * (1 - t))
    half = half * (1 + sum(w * np.sin(np.pi * (k + 2) * t) for k, w in enumerate(wave)))
    tangent = np.gradient(midrib, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) / np.linalg.norm(tangent, axis=1)[:, None]
    left, right = midrib + half[:, None] * normal, midrib - half[:, None] * normal
    mask, shade, veins, side_veins = sheets
    cv2.fillPoly(mask, [polygon(np.concatenate([left, right[::-1]]))], 255, cv2.LINE_AA)
    cv2.fillPoly(shade, [polygon(np.concatenate([left, midrib[::-1]]))], 175, cv2.LINE_AA)
    cv2.fillPoly(shade, [polygon(np.concatenate([right, midrib[::-1]]))], 120, cv2.LINE_AA)
    for place in range(2, len(midrib) - 2, 2):
        for edge in (left, right):
            end = midrib[place] + 0.85 * (edge[place + 2] - midrib[place])
            cv2.line(side_veins, on_stencil(midrib[place]), on_stencil(end), 255, 1, cv2.LINE_AA)
    cv2.polylines(veins, [polygon(midrib)], False, 255, 2, cv2.LINE_AA)


def _point_on(leaf: Leaf, rng: Rng) -> np.ndarray:
    """Draw a random point on one of the lobes."""
    lobe = leaf.lobes[rng.integers(len(leaf.lobes))]
    return lobe[rng.integers(3, len(lobe) - 2)] + rng.normal(0, 3.5 * leaf.scale, 2)


# --- conditions ----------------------------------------------------------------------------------------------------


def _paint(leaf: Leaf, label: int, severity: float, rng: Rng) -> Image:
    """Paint the leaf with the symptoms of its condition; `severity` in 0..1 says how strong they are."""
    green = rng.uniform(0.32, 0.58)
    base = rgb(green * rng.uniform(0.38, 0.78), green, green * rng.uniform(0.22, 0.45))
    texture = 1 + 0.07 * noise(rng, 20, 6, 2, gain=0.7) + 0.5 * (leaf.shade - 0.55)
    image = mix(base * texture[..., None], base * rgb(1.5, 1.35, 1.5), 0.55 * leaf.veins + 0.28 * leaf.side_veins)
    paint: tuple[Callable[..., Image], ...] = (_blight, _streak, _mottle, _mosaic, _blemishes)
    return paint[label](image, leaf, severity, rng)


def _blight(image: Image, leaf: Leaf, severity: float, rng: Rng) -> Image:
    """Paint bacterial blight: angular brown spots, each in a yellowish halo, and burnt tips."""
    import cv2

    spots, halo = stencil(), stencil()
    for _ in range(round(8 + 22 * severity)):
        place, size = _point_on(leaf, rng), rng.uniform(2.2, 4.8) * leaf.scale
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 6)))
        corners = size * rng.uniform(0.8, 1.3, (len(angles), 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(spots, [polygon(place + corners)], 255, cv2.LINE_AA)
        cv2.circle(halo, on_stencil(place), round(3.2 * size), 255, -1, cv2.LINE_AA)
    for lobe in leaf.lobes:
        if rng.random() < 0.7 * severity:
            cv2.circle(spots, on_stencil(lobe[-1]), round(rng.uniform(16, 44) * leaf.scale), 255, -1, cv2.LINE_AA)
    image = mix(image, rgb(0.60, 0.58, 0.20), 0.6 * soften(shrink(halo), 1.5))
    return mix(image, rgb(0.27, 0.16, 0.08) * (1 + 0.2 * noise(rng, 3))[..., None], 0.92 * shrink(spots))


def _streak(image: Image, leaf: Leaf, severity: float, rng: Rng) -> Image:
    """Brown streak: yellow spreads from the veins in feathered patches; what lies between them stays green."""
    near = soften(leaf.side_veins + 1.6 * leaf.veins, 1.3 * leaf.scale)
    patches = soft_step(noise(rng, 28, 13), 0.35 - 1.0 * severity, 0.7)
    yellow = rgb(0.74, 0.68, 0.16) * np.float32(rng.uniform(0.85, 1.1))
    return mix(image, yellow, (1.9 + 1.2 * severity) * near * patches)


def _mottle(image: Image, leaf: Leaf, severity: float, rng: Rng) -> Image:
    """Green mottle: small pale green patches all over, without the strong yellow of the mosaic."""
    cell = 6 * leaf.scale
    patches = soft_step(noise(rng, cell, 0.6 * cell, gain=0.6), 0.5 - 0.5 * severity, 0.6)
    pale = image * rgb(1.45, 1.38, 1.55) + np.float32(0.06)
    return mix(image, pale, (0.75 + 0.25 * severity) * patches)


def _mosaic(image: Image, leaf: Leaf, severity: float, rng: Rng) -> Image:
    """Mosaic: large bright yellow patches against dark green, on a bent leaf."""
    cell = 17 * leaf.scale
    patches = soft_step(noise(rng, cell, 0.45 * cell, gain=0.7), 0.3 - 0.6 * severity, 0.35)
    yellow = rgb(0.78, 0.78, 0.30) * np.float32(rng.uniform(0.8, 1.1)) * (0.7 + 0.55 * leaf.shade)[..., None]
    return mix(0.92 * image, yellow, (0.65 + 0.35 * severity) * patches)


def _blemishes(image: Image, leaf: Leaf, severity: float, rng: Rng) -> Image:
    """Paint a healthy leaf, which may still have a few specks."""
    import cv2

    specks = stencil()
    for _ in range(rng.poisson(2 * severity)):
        cv2.circle(specks, on_stencil(_point_on(leaf, rng)), int(rng.integers(1, 4)), 255, -1, cv2.LINE_AA)
    return mix(image, rgb(0.35, 0.28, 0.16), 0.8 * shrink(specks))
