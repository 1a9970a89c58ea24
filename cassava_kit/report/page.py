"""Self-contained HTML pages from templates, pictures and charts embedded; entry point `write_page`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import write_text
from cassava_kit.report.charts import Chart, write_pngs


def write_page(out: Path, template: str, charts: Sequence[Chart], values: dict[str, Any]) -> str:
    """Render a template with its charts by name, write page and PNGs, and return a line for the user."""
    shown = {one.name: one for one in charts}
    html = environment().get_template(template).render(charts=shown, stem=out.stem, **values)
    pngs = write_pngs(out, charts)
    write_text(out, html)
    beside = ", ".join(path.name for path in pngs[:4]) + (f" and {len(pngs) - 4} more" if len(pngs) > 4 else "")
    return f"{out}: {len(html.encode()) / 1e6:.1f} MB, open it in a browser" + (f"; beside it {beside}" if pngs else "")


def check_out(out: Path) -> Path:
    """Refuse a name that no browser would open as a page."""
    if out.suffix.lower() != ".html":
        raise UserError(f"the page must be an .html file, got {out}")
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; name the page to write")
    return out


def environment() -> Any:
    """Return the Jinja environment of the templates: values are escaped, an unknown name is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("cassava_kit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(percent=percent, number=number)
    return made


def percent(share: float, digits: int = 1) -> str:
    """Return `61.5 %` for .615, with a space that does not break."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def number(count: int, thing: str = "") -> str:
    """Return a count and its noun: `1 image`, `21,397 images`."""
    return f"{count:,} {thing}{'s' if thing and count != 1 else ''}".strip()


@dataclass(frozen=True)
class ClassNames:
    """The classes' names by label: `whole`, and `short`, the abbreviation in brackets where there is one.

    `numbered`: the competition's own labels are the numbers 0 to K-1, and stand before the names: `3 CMD`.
    """

    whole: tuple[str, ...]
    short: tuple[str, ...]
    numbered: bool


def name_classes(classes: Sequence[str], *, numbered: bool) -> ClassNames:
    """Return the names that pages show; two classes with one abbreviation keep their whole names.

    Example:
        >>> name_classes(["Cassava Mosaic Disease (CMD)", "Healthy"], numbered=True).short
        ('0 CMD', '1 Healthy')
    """
    brackets = [re.search(r"\(([^()\s]+)\)$", name) for name in classes]
    short = [m[1] if m and m[1].isupper() else name for m, name in zip(brackets, classes, strict=True)]
    short = short if len(set(short)) == len(short) else list(classes)

    def shown(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            f"{k} {name}" if numbered and name not in (str(k), f"class {k}") else name for k, name in enumerate(names)
        )

    return ClassNames(shown(classes), shown(short), numbered)


def slug(text: str) -> str:
    """Return the text with every character replaced that is unsafe in a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "run"
