"""Drawing around a leaf: paint and stencils, backgrounds, light and camera; used by `leaves.draw_photo`.

Colours are RGB floats 0..1, lengths are pixels of the final picture; shapes are drawn as stencils of twice that size
and shrunk, which smooths their edges. All randomness comes from the generator argument.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rng = np.random.Generator
Image = np.ndarray  # (HEIGHT, WIDTH, 3) float32
Plane = np.ndarray  # (HEIGHT, WIDTH) float32
Points = np.ndarray  # (n, 2) x, y

HEIGHT, WIDTH = 120, 160


# --- paint and stencils --------------------------------------------------------------------------------------------


def noise(rng: Rng, *cells: float, gain: float = 0.5) -> Plane:
    """Return smooth noise (HEIGHT, WIDTH) of zero mean and unit deviation: one octave for each cell size in pixels."""
    import cv2

    total = np.zeros((HEIGHT, WIDTH), np.float32)
    for octave, cell in enumerate(cells):
        shape = max(2, round(HEIGHT / cell)), max(2, round(WIDTH / cell))
        small = rng.standard_normal(shape, dtype=np.float32)
        total += gain**octave * cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return (total - total.mean()) / (total.std() + np.float32(1e-6))


def mix(image: Image | np.ndarray, other: Image | np.ndarray, weight: Plane) -> Image:
    """Blend two images: `other` where `weight` is 1, `image` where it is 0; either may be one colour."""
    return image + np.clip(weight, 0, 1)[..., None] * (other - image)


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """Return one colour, (3,) float32 in 0..1."""
    return np.array([red, green, blue], np.float32)


def soft_step(value: Plane, edge: float, softness: float) -> Plane:
    """Return a ramp of `value`: 0 below `edge`, 1 above it, over a width of `softness`."""
    return np.clip((value - np.float32(edge)) / np.float32(softness) + np.float32(0.5), 0, 1)


def soften(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian soften of an image or a plane."""
    import cv2

    return cv2.GaussianBlur(image, (0, 0), sigma)


def stencil() -> np.ndarray:
    """Return an empty stencil, (2 HEIGHT, 2 WIDTH) uint8, to draw a shape on."""
    return np.zeros((2 * HEIGHT, 2 * WIDTH), np.uint8)


def shrink(stencil: np.ndarray) -> Plane:
    """Return a stencil as a plane 0..1 of the final size."""
    import cv2

    return cv2.resize(stencil, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def on_stencil(point: np.ndarray) -> tuple[int, int]:
    """Return where a point of the picture lies on a stencil."""
    return round(2 * float(point[0])), round(2 * float(point[1]))


def polygon(points: Points) -> np.ndarray:
    """Return where the corners (n, 2) of a polygon lie on a stencil."""
    return (2 * points).round().astype(np.int32)


def random_point(rng: Rng, margin: int = 0) -> np.ndarray:
    """Draw a point of the picture, or up to `margin` pixels outside it."""
    return rng.uniform(-margin, (WIDTH + margin, HEIGHT + margin))


# --- backgrounds ---------------------------------------------------------------------------------------------------


def background(rng: Rng) -> Image:
    """Draw soil, foliage, sky or cloth, sometimes with a hand behind the leaf."""
    backgrounds: tuple[Callable[[Rng], Image], ...] = (_soil, _foliage, _sky, _cloth)
    image = backgrounds[rng.choice(4, p=[0.32, 0.42, 0.14, 0.12])](rng)
    return _hand(image, rng) if rng.random() < 0.2 else image


def _soil(rng: Rng) -> Image:
    """Draw reddish to grey earth with stones and straw."""
    import cv2

    grain = 0.5 + 0.22 * noise(rng, 45, 15, 5, 2, gain=0.75)
    image = mix(rgb(0.22, 0.15, 0.10), rgb(0.62, 0.48, 0.36), grain)
    image = image * rng.uniform(0.8, 1.1, 3).astype(np.float32)
    for _ in range(rng.integers(5, 40)):
        size, grey = rng.uniform(1, 4.5), rng.uniform(0.2, 0.75)
        axes = round(1.4 * size), round(size * rng.uniform(0.6, 1))
        centre = random_point(rng).astype(int).tolist()
        cv2.ellipse(image, centre, axes, rng.uniform(0, 180), 0, 360, (grey, 0.92 * grey, 0.85 * grey), -1)
    for _ in range(rng.integers(0, 12)):
        start = random_point(rng)
        end = start + rng.uniform(-30, 30, 2)
        cv2.line(image, start.astype(int).tolist(), end.astype(int).tolist(), (rng.uniform(0.5, 0.8), 0.55, 0.35), 1)
    return soften(image, rng.uniform(0.4, 1.3))


def _foliage(rng: Rng) -> Image:
    """Draw other leaves out of focus, from dark green to yellow, so that colour alone does not tell the class."""
    import cv2

    image = mix(rgb(0.05, 0.12, 0.04), rgb(0.28, 0.38, 0.16), 0.5 + 0.25 * noise(rng, 30, 10, gain=0.6))
    for _ in range(rng.integers(10, 35)):
        green, length = rng.uniform(0.25, 0.75), rng.uniform(8, 30)
        colour = green * rng.uniform(0.35, 1.0), green, green * rng.uniform(0.2, 0.55)
        axes = round(length), round(length * rng.uniform(0.15, 0.4))
        centre = random_point(rng).astype(int).tolist()
        cv2.ellipse(image, centre, axes, rng.uniform(0, 180), 0, 360, colour, -1)
    return soften(image, rng.uniform(1.0, 3.5))


def _sky(rng: Rng) -> Image:
    """Draw a sky with clouds above distant foliage."""
    image = mix(rgb(0.50, 0.66, 0.86), rgb(0.95, 0.96, 0.97), 0.5 + 0.35 * noise(rng, 60, 25, 10))
    horizon = HEIGHT * rng.uniform(0.5, 1.05) + 5 * noise(rng, 20)[0]
    below = soft_step(np.arange(HEIGHT, dtype=np.float32)[:, None] - horizon, 1.5, 3)
    return soften(mix(image, _foliage(rng), below), 0.8)


def _cloth(rng: Rng) -> Image:
    """Draw a flat cloth of any dull colour."""
    base = rng.uniform(0.15, 0.85) + rng.uniform(-0.15, 0.15, 3).astype(np.float32)
    return np.clip(base, 0.05, 0.95) * (1 + 0.12 * noise(rng, 50, 12, 2, gain=0.4))[..., None]


def _hand(image: Image, rng: Rng) -> Image:
    """Draw a palm with four fingers that reaches in from above or below."""
    import cv2

    skin = rgb(0.62, 0.43, 0.32) * np.float32(rng.uniform(0.55, 1.35))
    layer, top = stencil(), rng.random() < 0.3
    root = np.array([rng.uniform(0.2, 0.8) * WIDTH, 0 if top else HEIGHT])
    cv2.ellipse(layer, on_stencil(root), (58, 50), 0, 0, 360, 255, -1)
    for finger in range(4):
        knuckle = root + np.array([14 * finger - 21, 0])
        tip = knuckle + np.array([rng.uniform(-8, 8), rng.uniform(40, 62) * (1 if top else -1)])
        cv2.line(layer, on_stencil(knuckle), on_stencil(tip), 255, 21)
    return mix(image, skin * (1 + 0.06 * noise(rng, 20, 4))[..., None], soften(shrink(layer), 1.0))


# --- light and camera ----------------------------------------------------------------------------------------------


def cast_shadow(image: Image, mask: Plane, rng: Rng) -> Image:
    """Darken what lies under a leaf, shifted by up to 6 pixels."""
    shifted = np.roll(mask, tuple(rng.integers(-6, 7, 2)), axis=(0, 1))
    return image * (1 - rng.uniform(0.1, 0.5) * soften(shifted, 2.5))[..., None]


def occlude(image: Image, rng: Rng) -> Image:
    """Draw, in a third of the pictures, a blade of grass or a blurred leaf before the leaf."""
    import cv2

    if rng.random() > 0.35:
        return image
    layer = stencil()
    if rng.random() < 0.5:
        ends = on_stencil(random_point(rng, 30)), on_stencil(random_point(rng, 30))
        cv2.line(layer, *ends, 255, int(rng.integers(5, 16)), cv2.LINE_AA)
    else:
        axes = int(rng.uniform(30, 70)), int(rng.uniform(12, 28))
        cv2.ellipse(layer, on_stencil(random_point(rng)), axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
    green = rng.uniform(0.2, 0.55)
    colour = rgb(green * rng.uniform(0.5, 1.3), green, green * rng.uniform(0.25, 0.6))
    return mix(image, colour * (1 + 0.05 * noise(rng, 10))[..., None], soften(shrink(layer), rng.uniform(0.5, 2)))


def photograph(image: Image, rng: Rng) -> np.ndarray:
    """Apply exposure, colour cast, light from one side, focus and sensor noise; return (HEIGHT, WIDTH, 3) uint8."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    y, x = np.linspace(-1, 1, HEIGHT)[:, None], np.linspace(-1, 1, WIDTH)
    side_light = (1 + strength * (np.cos(angle) * x + np.sin(angle) * y)).astype(np.float32)
    cast = np.exp(rng.normal(0, 0.18) + rng.normal(0, 0.07, 3)).astype(np.float32)
    image = np.clip(image * cast * side_light[..., None], 0, 1) ** np.float32(np.exp(rng.normal(0, 0.15)))
    image = soften(image, 0.2 + rng.exponential(0.3))
    grain = rng.uniform(0.005, 0.03) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip((image + grain) * 255 + 0.5, 0, 255).astype(np.uint8)
