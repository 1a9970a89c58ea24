"""Show pictures in a notebook, where a picture that fails costs nothing else: `show`, `photo_sheet`."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cassava_kit.report.charts import CHART_WIDTH, COLORS, INK, PNG_DPI, Chart, apply_style
from cassava_kit.report.fonts import shorten
from cassava_kit.report.page import name_classes
from cassava_kit.report.sheet import four_to_three

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

JPEG_QUALITY = 85
CAPTION_SIZE, HEADING_SIZE = 9, 10  # points
LINE = 0.17  # inches of a caption's line
# Width of a letter in ems, about, to know how much of a caption fits.
LETTER = 0.56
RIGHT_FRAME, WRONG_FRAME = COLORS[2], COLORS[1]


@dataclass(frozen=True)
class CaptionedPhoto:
    """A photograph (H, W, 3) uint8 and its caption, a line a row; `right` draws a frame that says so by its colour."""

    pixels: np.ndarray
    caption: str = ""
    right: bool | None = None


def show(draw: Callable[..., Any], *arguments: Any) -> None:
    """Display what `draw(*arguments)` returns: a chart, charts side by side (a tuple), a text, a table, or a list.

    A failure is printed and not raised: hours of work must not end with a picture.
    """
    try:
        for part in _as_parts(draw(*arguments)):
            display_part(part)
    except Exception as error:
        print(f"{getattr(draw, '__name__', 'picture')} is left out: {type(error).__name__}: {error}")


def display_part(part: Any) -> None:
    """Display a chart as a picture with its description, a text as it is, and anything else as the notebook does."""
    from IPython.display import display

    if isinstance(part, str):
        print(part)
    else:
        shown = side_by_side(part if isinstance(part, tuple) else (part,)) if _has_charts(part) else part
        display(shown)


def side_by_side(charts: Sequence[Chart]) -> Any:
    """Return charts as the notebook's pictures in one line, which breaks where the window is narrow.

    They are dark on white cards: a notebook is read in light and in dark colours.
    """
    from IPython.display import HTML

    # Two share a line where each has 400 pixels; none is drawn larger than it is.
    style = "flex:1 1 400px;min-width:0;max-width:min(100%,588px);height:auto;background:#fff;border-radius:6px"
    pictures = [f'<img src="{_as_data(one.png)}" alt="{html.escape(one.alt)}" style="{style}">' for one in charts]
    line = "display:flex;flex-wrap:wrap;gap:10px;align-items:flex-start"
    return HTML(f'<div style="{line}">{"".join(pictures)}</div>')


def _as_data(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _has_charts(part: Any) -> bool:
    return isinstance(part, Chart) or (isinstance(part, tuple) and all(isinstance(each, Chart) for each in part))


def _as_parts(result: Any) -> Iterator[Any]:
    if isinstance(result, list):
        yield from result
    elif result is not None:
        yield result


def read_photo(path: Path, caption: str = "", *, right: bool | None = None, side: int = 180) -> CaptionedPhoto:
    """Return a small 4:3 photograph of a file; a gray one, which says so, where the file is no whole image."""
    import cv2

    from cassava_kit.data.images import ImageError, decode_small, read_bytes

    size = side * 4 // 3, side
    try:
        image = four_to_three(decode_small(read_bytes(path), side))
    except ImageError:
        return CaptionedPhoto(np.full((side, size[0], 3), 160, np.uint8), f"{caption}\ncannot be read".strip(), right)
    way = cv2.INTER_AREA if image.shape[0] > side else cv2.INTER_LINEAR
    return CaptionedPhoto(cv2.resize(np.ascontiguousarray(image), size, interpolation=way), caption, right)


def read_photos(paths: Sequence[Path], captions: Sequence[str]) -> list[CaptionedPhoto]:
    """Return the small photographs of some files, read on all cores."""
    from cassava_kit.data.images import in_threads

    pairs = list(zip(paths, captions, strict=True))
    return list(in_threads(lambda pair: read_photo(*pair), pairs, title="Reading", progress=False))


@apply_style
def photo_sheet(name: str, alt: str, rows: Mapping[str, Sequence[CaptionedPhoto]], *, columns: int) -> Chart:
    """Return a sheet of photographs as JPEG, as wide as a chart: each heading over its photographs, `columns` a line.

    An empty heading takes no room.
    """
    width = CHART_WIDTH / columns
    blocks = [_Block(heading, list(photos), columns, width) for heading, photos in rows.items()]
    height = max(sum(block.height for block in blocks), 0.5)
    figure, ax = _sheet(height)
    top = 0.0
    for block in blocks:
        block.draw(ax, top)
        top += block.height
    ax.set(xlim=(0, CHART_WIDTH), ylim=(height, 0), aspect="auto")
    content = io.BytesIO()
    options = {"pil_kwargs": {"quality": JPEG_QUALITY}}
    figure.savefig(content, format="jpg", dpi=PNG_DPI, facecolor="white", **options)
    return Chart(name, alt, "", content.getvalue())


def split_sheet(name: str, alt: str, photos: Sequence[CaptionedPhoto], *, columns: int) -> tuple[Chart, ...]:
    """Return photographs as two sheets of about the same length, to stand side by side; up to one line as one."""
    lines = -(-len(photos) // columns)
    cut = columns * -(-lines // 2)
    parts = [part for part in (photos[:cut], photos[cut:]) if part]
    return tuple(photo_sheet(f"{name}{n}", alt, {"": part}, columns=columns) for n, part in enumerate(parts))


def _sheet(height: float) -> tuple[Any, Axes]:
    """Return a figure whose one pair of axes is in inches, from its upper left corner."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(CHART_WIDTH, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    return figure, ax


@dataclass(frozen=True)
class _Block:
    """A heading and its photographs, `columns` in a line, each `width` inches wide with its gap."""

    heading: str
    photos: list[CaptionedPhoto]
    columns: int
    width: float

    @property
    def lines(self) -> int:
        """Lines of the longest caption."""
        return max((photo.caption.count("\n") + bool(photo.caption) for photo in self.photos), default=0)

    @property
    def line_height(self) -> float:
        """Inches of a line of photographs and their captions."""
        return (self.width - 0.1) * 3 / 4 + LINE * self.lines + 0.14

    @property
    def height(self) -> float:
        """Inches of the block."""
        heading = 0.32 if self.heading else 0.04
        return heading + self.line_height * -(-len(self.photos) // self.columns)

    def draw(self, ax: Axes, top: float) -> None:
        """Draw the block from `top` inches down."""
        from matplotlib.patches import Rectangle

        if self.heading:
            text = fit_text(self.heading, CHART_WIDTH, HEADING_SIZE)
            ax.text(0.06, top + 0.22, text, fontsize=HEADING_SIZE, color=INK)
        start = top + (0.32 if self.heading else 0.04)
        for n, photo in enumerate(self.photos):
            left, upper = 0.05 + self.width * (n % self.columns), start + self.line_height * (n // self.columns)
            wide, high = self.width - 0.1, (self.width - 0.1) * 3 / 4
            x, y, w, h = fit_box(photo.pixels.shape[:2], (left, upper, wide, high))
            ax.imshow(photo.pixels, extent=(x, x + w, y + h, y), interpolation="antialiased")
            if photo.right is not None:
                color = RIGHT_FRAME if photo.right else WRONG_FRAME
                ax.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=color, linewidth=2.5))
            for k, line in enumerate(photo.caption.split("\n")):
                text = fit_text(line, wide, CAPTION_SIZE)
                ax.text(left, upper + high + LINE * (k + 0.85), text, fontsize=CAPTION_SIZE, color=INK)


def fit_box(shape: tuple[int, ...], box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return where in a box (left, top, width, height) a picture (H, W) goes: as large as it can be, in the middle."""
    left, top, wide, high = box
    scale = min(wide / shape[1], high / shape[0])
    w, h = shape[1] * scale, shape[0] * scale
    return left + (wide - w) / 2, top + (high - h) / 2, w, h


def fit_text(text: str, inches: float, points: float) -> str:
    """Return the text, cut where it would be wider than that at this size of letters."""
    return shorten(text, max(4, int(inches * 72 / (points * LETTER))))


def name_corner(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its index's name in the corner, where pandas would give it a row of its own."""
    shown = frame.copy()
    shown.columns.name, shown.index.name = frame.index.name, None
    return shown


def short_class(name: str) -> str:
    """Return the abbreviation in a class name's brackets, or the name: `CMD`."""
    return name_classes([name], numbered=False).short[0]
