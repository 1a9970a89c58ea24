"""Every colour of letters on the pages, in light and dark, has the contrast that WCAG 2 asks for (AA, 4.5 : 1)."""

import re
from pathlib import Path

import numpy as np
import pytest

from cassava_kit.report import page
from cassava_kit.report.charts import readable_on

TEMPLATES = Path(page.__file__).parent / "templates"
LETTERS = ("ink", "soft", "bad", "good", "change", "mark")
GROUNDS = ("paper", "card")


def luminance(rgb):
    """Relative luminance of sRGB values 0..1, as WCAG 2 defines it."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a, b):
    """Contrast ratio of two sRGB colours, 1..21."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def rgb(text):
    """sRGB values 0..1 of `#rrggbb`."""
    return tuple(int(text[k : k + 2], 16) / 255 for k in (1, 3, 5))


def colours(scheme):
    """The page's colours by name in light or dark."""
    light, dark = re.split(r"@media \(prefers-color-scheme: dark\)", (TEMPLATES / "colours.css").read_text("utf-8"))
    read = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light))
    return read if scheme == "light" else read | dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", dark))


def test_the_formula_is_the_published_one():
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.48, abs=0.005), "the well-known near miss"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("letters", LETTERS)
def test_letters_can_be_read(scheme, ground, letters):
    found = colours(scheme)
    assert contrast(rgb(found[letters]), rgb(found[ground])) >= 4.5


def test_dark_has_every_colour_of_its_own():
    light, dark = colours("light"), colours("dark")
    assert set(light) == {*LETTERS, *GROUNDS, "line"} and all(light[name] != dark[name] for name in light)


@pytest.mark.parametrize("template", ["page.html", "review.html"])
def test_letters_have_no_other_colours(template):
    """Neither a colour beside those that are tested nor a see-through letter."""
    style = re.search(r"<style>(.*?)</style>", (TEMPLATES / template).read_text("utf-8"), re.DOTALL)[1]
    used = re.findall(r"(?<![-\w])color:\s*([^;}]+)", style)
    assert used and all(re.fullmatch(rf"var\(--({'|'.join(LETTERS)})\)|inherit", value.strip()) for value in used)
    assert "opacity" not in style and not re.search(r"background:(?!\s*var\(--(paper|card)\))", style)


def test_letters_on_the_confusion_matrix_can_be_read():
    from matplotlib import colormaps

    for share in np.linspace(0, 1, 257):
        ground = colormaps["Blues"](float(share))[:3]
        assert contrast(rgb(readable_on(ground)), ground) >= 4.5
