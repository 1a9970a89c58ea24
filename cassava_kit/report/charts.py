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
from cassava_kit.report.fonts import font_families, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, apart for every kind of colour vision; these read on white as well as on near-black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f7f7f")
# Colours that stand for the page's own: the SVG takes `currentColor` in their place, the PNG keeps them.
INK, FAINT = "#1a1a1b", "#c9c9ca"
PNG_DPI = 120
# Inches: narrow enough to be read on a telephone, where the page shrinks it to four fifths.
CHART_WIDTH = 4.9
LONGEST_LABEL = 24
FEW = 12  # up to so many classes a chart has room for a line of 10 points each
Drawing = ParamSpec("Drawing")
SETTINGS: Any = {  # matplotlib types its names one by one
    "svg.fonttype": "none",
    "svg.hashsalt": "cassava-kit",
    "text.parse_math": False,  # a class name may hold dollar signs
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
        import warnings

        from matplotlib import rc_context

        with rc_context({**SETTINGS, "font.family": font_families()}), warnings.catch_warnings():
            # Only the PNG lacks such a character; the page's browser finds it in its own fonts.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            return draw(*args, **kwargs)

    return within


def chart(name: str, alt: str, figure: Figure) -> Chart:
    """Return the figure as SVG and PNG; the same figure and matplotlib give the same bytes."""
    svg = io.StringIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # the PNG keeps the places that were found for the SVG
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
    head = f'<svg role="img" aria-label="{escape(alt, quote=True)}"'
    return svg.replace("<svg", head, 1).strip()


def write_pngs(page: Path, charts: Sequence[Chart]) -> list[Path]:
    """Write each chart as `<page>-<name>.png` beside the page, atomically."""
    paths = [page.with_name(f"{page.stem}-{one.name}.png") for one in charts]
    for path, one in zip(paths, charts, strict=True):
        with atomic_path(path) as temporary:
            temporary.write_bytes(one.png)
    return paths


def axes(
    width: float, height: float, *, rows: int = 1, heights: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `width` x `height` inches and its axes, top to bottom, without matplotlib's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    made = figure.subplots(rows, 1, squeeze=False, height_ratios=heights)
    return figure, list(made.ravel())


def _line_height(n_labels: int) -> float:
    """Return the height in inches of one of so many lines."""
    return 0.36 if n_labels <= FEW else 0.2


def _label_lines(spot: Axes, at: np.ndarray, labels: Sequence[str]) -> None:
    """Name the lines of a chart from top to bottom, long names on two lines where these are few."""
    shown = [wrap(label, LONGEST_LABEL, 2 if len(labels) <= FEW else 1) for label in labels]
    spot.set_yticks(at, shown, fontsize=10 if len(labels) <= FEW else 8)


@apply_style
def bars(name: str, alt: str, labels: Sequence[str], values: Sequence[int]) -> Chart:
    """Draw horizontal bars with their counts and shares of the total."""
    figure, (ax,) = axes(CHART_WIDTH, 0.6 + _line_height(len(labels)) * len(labels))
    at = np.arange(len(labels))
    ax.barh(at, values, color=COLORS[0], height=0.7)
    _label_lines(ax, at, labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_xlim(0, max(*values, 1) * 1.4)
    for y, value in enumerate(values):
        text = f"{value:,} ({value / max(sum(values), 1):.1%})"
        size = 9 if len(labels) <= FEW else 7.5
        ax.annotate(text, (value, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=size)
    ax.set_xlabel("images")
    return chart(name, alt, figure)


@apply_style
def boxes(name: str, alt: str, labels: Sequence[str], groups: Sequence[np.ndarray]) -> Chart:
    """Draw a box plot for each group of values (N,): quartiles, whiskers to the 5th and 95th percentile."""
    figure, (spot,) = axes(CHART_WIDTH, 0.5 + _line_height(len(labels)) * len(labels))
    ink: dict[str, Any] = {"color": INK, "linewidth": 0.9}
    # Not matplotlib's boxplot: its word for lying boxes changed from version to version.
    for y, group in enumerate(groups):
        if len(group):
            low, first, middle, third, high = np.percentile(group, (5, 25, 50, 75, 95))
            spot.hlines(y, low, high, **ink)
            spot.vlines((low, high), y - 0.15, y + 0.15, **ink)
            spot.barh(y, third - first, 0.6, first, color=COLORS[0], edgecolor=INK, alpha=0.55, linewidth=0.9)
            spot.vlines(middle, y - 0.3, y + 0.3, color=INK, linewidth=1.6)
    _label_lines(spot, np.arange(len(labels)), labels)
    spot.set_ylim(len(labels) - 0.4, -0.6)
    spot.grid(axis="x")
    return chart(name, alt, figure)


@apply_style
def curves(name: str, alt: str, metrics: Mapping[int, Mapping[str, Sequence[float]]], *, quantity: str) -> Chart:
    """Draw `train_<quantity>` (dashed) and `val_<quantity>` (solid) by epoch, a colour a fold."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, (spot,) = axes(CHART_WIDTH, 3.2)
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
    full = Line2D([], [], color=INK, linestyle="-", label="validation")
    broken = Line2D([], [], color=INK, linestyle="--", label="training")
    folds = [
        Line2D([], [], color=COLORS[n % len(COLORS)], label=f"fold {fold}") for n, fold in enumerate(sorted(metrics))
    ]
    figure.legend(handles=[full, broken, *folds], loc="outside lower center", ncols=4, fontsize=9)
    return chart(name, alt, figure)


@apply_style
def confusion_matrix(name: str, alt: str, labels: Sequence[str], counts: np.ndarray) -> Chart:
    """Draw counts (K, K) of given label by predicted class, coloured by their share of the row.

    Cells say share and count up to six classes, the share up to twelve, nothing beyond; beyond fifty no class is named.
    """
    from matplotlib import colormaps

    k = len(labels)
    cell = 0.66 if k <= 6 else 0.36 if k <= FEW else min(0.17, 8.5 / k)
    figure, (ax,) = axes(max(CHART_WIDTH, 1.4 + cell * k), max(1.2 + cell * k, 2.2))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="face", linewidth=0.7)
    for row, column in np.ndindex(*counts.shape) if k <= FEW else ():
        text = f"{shares[row, column]:.0%}" + (f"\n{counts[row, column]:,}" if k <= 6 else "")
        color = readable_on(colormaps["Blues"](float(shares[row, column]))[:3])
        ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color, fontsize=9 if k <= 6 else 8.5)
    middle = np.arange(k) + 0.5
    lines = 3 if k <= 6 else 2 if k <= FEW else 1
    shown = [wrap(label, 16, lines) if k <= 50 else "" for label in labels]
    longest = max(len(line) for label in shown for line in label.split("\n"))
    size = 9 if k <= FEW else 6.5
    ax.set_xticks(middle, shown, rotation=0 if k <= 6 and longest <= 9 else 90, fontsize=size)
    ax.set_yticks(middle, shown, fontsize=size)
    ax.set_xlabel("predicted")
    ax.set_ylabel("given label")
    ax.invert_yaxis()
    ax.tick_params(length=0)
    return chart(name, alt, figure)


def readable_on(color: tuple[float, float, float]) -> str:
    """Return black or white, whichever has more contrast (WCAG 2) on an sRGB colour, 0..1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    luminance = float(np.dot((0.2126, 0.7152, 0.0722), linear))
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


@apply_style
def intervals(name: str, alt: str, labels: Sequence[str], values: np.ndarray, *, zero: float | None = None) -> Chart:
    """Draw points with intervals, values (N, 3) of value, low and high; `zero` is the dashed line of reference."""
    figure, (ax,) = axes(CHART_WIDTH, 0.8 + _line_height(len(labels)) * len(labels))
    at = np.arange(len(labels))
    value, low, high = values.T
    ax.errorbar(value, at, xerr=[value - low, high - value], fmt="o", color=COLORS[0], capsize=3, linewidth=1.5)
    for y, (v, end) in enumerate(zip(value, high, strict=True)):
        if np.isfinite(v):
            size = 9 if len(labels) <= FEW else 7.5
            ax.annotate(f"{v:.3f}", (end, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=size)
    ax.margins(x=0.18)
    _label_lines(ax, at, labels)
    ax.set_ylim(len(labels) - 0.5, -0.7)
    ax.grid(axis="x")
    if zero is not None:
        ax.axvline(zero, color=INK, linestyle="--", linewidth=1)
    return chart(name, alt, figure)


@apply_style
def reliability(name: str, alt: str, confidence: np.ndarray, right: np.ndarray, *, bins: int) -> Chart:
    """Draw accuracy against confidence (N,) in equal bins, over the number of images in each bin."""
    figure, (ax, below) = axes(CHART_WIDTH, 4.6, rows=2, heights=(3, 1))
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
