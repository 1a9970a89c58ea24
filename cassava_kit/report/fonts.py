"""Fonts that have the characters of class names; entry points `font_families` (charts) and `fitting_font` (sheets)."""

from __future__ import annotations

import textwrap
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

# Matplotlib brings the first; the others are taken where the machine has them.
FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Noto Sans",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
)


@cache
def installed_fonts() -> dict[str, str]:
    """Return the font file of each of `FAMILIES` that this machine has, in their order."""
    from matplotlib.font_manager import fontManager

    upright = [f for f in fontManager.ttflist if f.style == "normal" and str(f.weight) in ("400", "normal", "regular")]
    files = {f.name: f.fname for f in reversed(upright)}
    return {name: files[name] for name in FAMILIES if name in files}


def font_families() -> list[str]:
    """Return the families that matplotlib looks for a character in, one after the other."""
    return list(installed_fonts())


def fitting_font(text: str, size: int) -> FreeTypeFont:
    """Return the first font, `size` pixels high, that has every character of the text; else matplotlib's own."""
    from PIL import ImageFont

    wanted = {ord(character) for character in text if not character.isspace()}
    files = list(installed_fonts().values())
    return ImageFont.truetype(next((file for file in files if wanted <= _characters(file)), files[0]), size)


@cache
def _characters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(file).get_charmap())


def wrap(text: str, width: int, lines: int) -> str:
    """Return the text in lines of at most `width` characters, cut with an ellipsis where `lines` do not hold it."""
    parts = textwrap.wrap(text, width)
    rest = [shorten(" ".join(parts[lines - 1 :]), width)] if len(parts) > lines else parts[lines - 1 :]
    return "\n".join([*parts[: lines - 1], *rest])


def shorten(text: str, most: int) -> str:
    """Return the text, cut to `most` characters of which the last is then an ellipsis: `Cassava Bro…`."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
