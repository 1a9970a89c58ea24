"""Charts as inline SVG in the page's light or dark colours, and as PNG; entry points are `bars` and its siblings."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from cassava_kit.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, apart for every kind of colour vision; these read on white as well as on near-black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f7f7f")
# Colours that stand for the page's own: the SVG takes `currentColor` in their place, the PNG keeps them.
INK, FAINT = "#1a1a1b", "#c9c9ca"
PNG_DPI = 120
Drawing = ParamSpec("Drawing")
SETTINGS: Any = {  # matplotlib types its names one by one
    "svg.fonttype": "none",
    "svg.hashsalt": "cassava-kit",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


@dataclass(frozen=True)
class Chart:
    """A figure as SVG and PNG; `name` is part of the PNG's file name, `alt` describes the figure in a sentence."""

    name: str
    alt: str
    svg: str
    png: bytes


def apply_style(draw: Callable[Drawing, Chart]) -> Callable[Drawing, Chart]:
    """Draw with `SETTINGS`, and leave matplotlib's own settings as they were."""

    @wraps(draw)
    def within(*args: Drawing.args, **kwargs: Drawing.kwargs) -> Chart:
        from matplotlib import rc_context

        with rc_context(SETTINGS):
            return draw(*args, **kwargs)

    return within


def chart(name: str, alt: str, figure: Figure) -> Chart:
    """Return the figure as SVG and PNG; the same figure and matplotlib give the same bytes."""
    svg = io.StringIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Chart(name, alt, inline_svg(svg.getvalue(), name, alt), png_bytes(figure))


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as PNG, dark on white."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=PNG_DPI, facecolor="white")
    return png.getvalue()


def inline_svg(svg: str, name: str, alt: str) -> str:
    """Return the SVG element alone, with ids unique to the page and the page's text colour."""
    from html import escape

    slug = re.sub(r"[^A-Za-z0-9]+", "-", name)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{slug}-', svg)
    svg = re.sub(r'(url\(#|xlink:href="#)', rf"\1{slug}-", svg)
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    width = re.search(r'width="([\d.]+)pt"', svg)
    style = f' style="--width: {width[1]}pt"' if width else ""
    head = f'<svg role="img" aria-label="{escape(alt, quote=True)}"{style}'
    return svg.replace("<svg", head, 1).strip()


def write_pngs(page: Path, charts: Sequence[Chart]) -> list[Path]:
    """Write each chart as `<page>-<name>.png` beside the page, atomically."""
    paths = [page.with_name(f"{page.stem}-{one.name}.png") for one in charts]
    for path, one in zip(paths, charts, strict=True):
        with atomic_path(path) as temporary:
            temporary.write_bytes(one.png)
    return paths


def axes(
    width: float, height: float, *, columns: int = 1, rows: int = 1, heights: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `width` x `height` inches and its axes, row by row, without matplotlib's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    made = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    return figure, list(made.ravel())


@apply_style
def bars(name: str, alt: str, labels: Sequence[str], values: Sequence[int]) -> Chart:
    """Draw horizontal bars with their counts and shares of the total."""
    figure, (ax,) = axes(7, 0.6 + 0.42 * len(labels))
    at = np.arange(len(labels))
    ax.barh(at, values, color=COLORS[0], height=0.7)
    ax.set_yticks(at, labels)
    ax.invert_yaxis()
    ax.set_xlim(0, max(*values, 1) * 1.22)
    for y, value in enumerate(values):
        text = f"{value:,} ({value / max(sum(values), 1):.1%})"
        ax.annotate(text, (value, y), xytext=(5, 0), textcoords="offset points", va="center")
    ax.set_xlabel("images")
    return chart(name, alt, figure)


@apply_style
def boxes(name: str, alt: str, labels: Sequence[str], values: Mapping[str, Sequence[np.ndarray]]) -> Chart:
    """Draw a row of box plots for each quantity, a box a class: quartiles, whiskers to the 5th and 95th percentile."""
    n = len(values)
    columns = min(n, 2)
    rows = -(-n // columns)
    figure, spots = axes(9, 0.5 + rows * (0.7 + 0.27 * len(labels)), columns=columns, rows=rows)
    ink: dict[str, Any] = {"color": INK, "linewidth": 0.9}
    for k, (spot, (title, groups)) in enumerate(zip(spots, values.items(), strict=False)):
        # Not matplotlib's boxplot: its word for lying boxes changed from version to version.
        for y, group in enumerate(groups, start=1):
            if len(group):
                low, first, middle, third, high = np.percentile(group, (5, 25, 50, 75, 95))
                spot.hlines(y, low, high, **ink)
                spot.vlines((low, high), y - 0.15, y + 0.15, **ink)
                spot.barh(y, third - first, 0.6, first, color=COLORS[0], edgecolor=INK, alpha=0.55, linewidth=0.9)
                spot.vlines(middle, y - 0.3, y + 0.3, color=INK, linewidth=1.6)
        spot.set_title(title)
        spot.set_yticks(range(1, len(labels) + 1), labels if k % columns == 0 else [""] * len(labels))
        spot.invert_yaxis()
        spot.grid(axis="x")
    for spot in spots[n:]:
        spot.set_axis_off()
    return chart(name, alt, figure)


@apply_style
def picture_grid(name: str, alt: str, labels: Sequence[str], pictures: Sequence[Sequence[np.ndarray]]) -> Chart:
    """Draw a row of pictures (H, W, 3) uint8 for each label, as PNG alone."""
    columns = max(1, *(len(row) for row in pictures))
    figure, spots = axes(1.5 * columns, 1.35 * len(labels), rows=len(labels))
    for spot, label, row in zip(spots, labels, pictures, strict=True):
        for column, picture in enumerate(row):
            left = column * 4.2
            spot.imshow(four_to_three(picture), extent=(left, left + 4, 0, 3))
        spot.set(title=label, xlim=(0, 4.2 * columns - 0.2), ylim=(0, 3), aspect="equal")
        spot.set_axis_off()
    return Chart(name, alt, "", png_bytes(figure))


def four_to_three(picture: np.ndarray) -> np.ndarray:
    """Return the middle of a picture (H, W, 3), cut to 4:3."""
    height, width = picture.shape[:2]
    high, wide = min(height, max(1, width * 3 // 4)), min(width, max(1, height * 4 // 3))
    top, left = (height - high) // 2, (width - wide) // 2
    return picture[top : top + high, left : left + wide]


@apply_style
def curves(name: str, alt: str, metrics: Mapping[int, Mapping[str, Sequence[float]]]) -> Chart:
    """Draw loss and accuracy by epoch, a colour a fold; validation is a solid line, training a dashed one."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, spots = axes(9, 3.4, columns=2)
    for spot, quantity in zip(spots, ("loss", "accuracy"), strict=True):
        for n, (_, columns) in enumerate(sorted(metrics.items())):
            for part, style in (("train", "--"), ("val", "-")):
                values = columns.get(f"{part}_{quantity}")
                if values is not None:
                    marker = "o" if len(values) < 15 else ""
                    epochs = np.arange(1, len(values) + 1)
                    color = COLORS[n % len(COLORS)]
                    spot.plot(epochs, values, style, color=color, marker=marker, markersize=3, linewidth=1.4)
        spot.set_title(quantity)
        spot.set_xlabel("epoch")
        spot.ticklabel_format(axis="y", useOffset=False)
        spot.xaxis.set_major_locator(MaxNLocator(integer=True))
        spot.grid()
    folds = [
        Line2D([], [], color=COLORS[n % len(COLORS)], label=f"fold {fold}") for n, fold in enumerate(sorted(metrics))
    ]
    full = Line2D([], [], color=INK, linestyle="-", label="validation")
    broken = Line2D([], [], color=INK, linestyle="--", label="training")
    figure.legend(handles=[full, broken, *folds], loc="outside lower center", ncols=min(len(folds) + 2, 7))
    return chart(name, alt, figure)


@apply_style
def confusion_matrix(name: str, alt: str, labels: Sequence[str], counts: np.ndarray) -> Chart:
    """Draw counts (K, K) of true by predicted class, coloured by their share of the row."""
    figure, (ax,) = axes(1.8 + 0.95 * len(labels), 1.1 + 0.75 * len(labels))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="face", linewidth=0.7)
    for row, column in np.ndindex(*counts.shape):
        color = "#ffffff" if shares[row, column] > 0.7 else "#111111"
        text = f"{shares[row, column]:.0%}\n{counts[row, column]:,}"
        ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color, fontsize=9)
    middle = np.arange(len(labels)) + 0.5
    ax.set_xticks(middle, labels)
    ax.set_yticks(middle, labels)
    ax.set_xlabel("predicted")
    ax.set_ylabel("given label")
    ax.invert_yaxis()
    ax.tick_params(length=0)
    return chart(name, alt, figure)


@apply_style
def intervals(name: str, alt: str, labels: Sequence[str], values: np.ndarray, *, zero: float | None = None) -> Chart:
    """Draw points with intervals, values (N, 3) of value, low and high; `zero` is the dashed line of reference."""
    figure, (ax,) = axes(7, 0.8 + 0.36 * len(labels))
    at = np.arange(len(labels))
    value, low, high = values.T
    ax.errorbar(value, at, xerr=[value - low, high - value], fmt="o", color=COLORS[0], capsize=3, linewidth=1.5)
    for y, (v, end) in enumerate(zip(value, high, strict=True)):
        if np.isfinite(v):
            ax.annotate(f"{v:.3f}", (end, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9)
    ax.margins(x=0.14)
    ax.set_yticks(at, labels)
    ax.set_ylim(len(labels) - 0.5, -0.7)
    ax.grid(axis="x")
    if zero is not None:
        ax.axvline(zero, color=INK, linestyle="--", linewidth=1)
    return chart(name, alt, figure)


@apply_style
def reliability(name: str, alt: str, confidence: np.ndarray, right: np.ndarray, *, bins: int) -> Chart:
    """Draw accuracy against confidence (N,) in equal bins, over the number of images in each bin."""
    figure, (ax, below) = axes(4.6, 4.6, rows=2, heights=(3, 1))
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    filled = np.flatnonzero(counts)
    mean_confidence = np.bincount(bin_of, confidence, minlength=bins)[filled] / counts[filled]
    mean_right = np.bincount(bin_of, right.astype(float), minlength=bins)[filled] / counts[filled]
    ax.plot([0, 1], [0, 1], "--", color=INK, linewidth=1)
    ax.plot(mean_confidence, mean_right, "o-", color=COLORS[1], linewidth=1.4)
    ax.set_ylabel("accuracy")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.grid()
    below.bar((np.arange(bins) + 0.5) / bins, counts, width=0.9 / bins, color=COLORS[0])
    below.set_xlim(0, 1)
    below.set_xlabel("confidence")
    below.set_ylabel("images")
    return chart(name, alt, figure)
