"""Make the pictures of README.md and kernels/README.md from the sample's demo; entry point `main`.

`make pictures`, after `make demo`. Writes docs/sample.jpg, report.jpg, review.jpg, notebook.jpg and collage.jpg, and
kernels/<name>/executed.jpg of each notebook that `make kernels-html` has executed. Needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chrome  # tests/report, where the pages are opened too
from PIL import Image, ImageDraw

from cassava_kit.cli.clean import clean_files
from cassava_kit.data.sample.make import ensure_sample
from cassava_kit.errors import UserError
from cassava_kit.evidence.noise.decisions import Caps
from cassava_kit.files import atomic_path
from cassava_kit.report.fonts import fitting_font
from cassava_kit.report.review import review_files
from cassava_kit.report.runs_page import write_report
from cassava_kit.report.sheet import contact_sheet

ROOT = Path(__file__).resolve().parents[1]
WIDE, NARROW = 1200, 800  # windows of the single pictures, and of the collage's parts
LARGEST = 290_000  # bytes of a picture in docs/
LARGEST_EXECUTED = 195_000  # of one in kernels/
# Notebook -> the number of the heading from which on its picture is taken.
HEADINGS = {"eda": 3, "train-folds": 5, "pretrain-ssl": 4, "ensemble-submission": 6}
COLLAGE = (1500, 900)
GROUND, EDGE, LETTERS = "#eceae4", "#b9b6ae", "#3a3a3c"


# Where a page's numbered heading begins, in pixels; 0 for the page's own top.
TOP = """
const heading = [...document.querySelectorAll('h2')].find(h => h.textContent.startsWith(arguments[0] + '.'));
return arguments[0] && heading ? Math.round(heading.getBoundingClientRect().top + scrollY) - 12 : 0;
"""


@dataclass(frozen=True)
class Shot:
    """A page and the part of it that is taken: `height` pixels from its heading of that number on, 0: from its top."""

    page: Path
    height: int
    heading: int = 0
    width: int = WIDE


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "sample-v1", help="what `make demo` left")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--kernels", type=Path, default=ROOT / "kernels")
    given = parser.parse_args(arguments)
    if not (given.build / "folds.csv").is_file():
        raise UserError(f"no {given.build / 'folds.csv'}; run `make demo` first, or give --build")
    executed = {name: given.kernels / name / "executed.html" for name in HEADINGS}
    missing = [str(path) for path in executed.values() if not path.is_file()]
    if missing:
        raise UserError(f"no {missing[0]}; run `make kernels-html` first")
    with tempfile.TemporaryDirectory() as folder:
        report, review = write_pages(given.build, Path(folder))
        browser = chrome.start_chromium(Path(folder) / "profile", size=(WIDE, 900))
        try:
            shots = {
                "report": photograph(browser, Shot(report, 1500)),
                "review": photograph(browser, Shot(review, 1180)),
            }
            for name, page in executed.items():
                picture = photograph(browser, Shot(page, 1500, HEADINGS[name]))
                write_jpeg(given.kernels / name / "executed.jpg", picture, LARGEST_EXECUTED)
                shots |= {"notebook": picture} if name == "ensemble-submission" else {}
            submission = executed["ensemble-submission"]
            parts = {
                "report": Shot(report, 1400, width=NARROW),
                "review": Shot(review, 1400, width=NARROW),
                "notebook": Shot(submission, 1400, HEADINGS["ensemble-submission"], NARROW),
            }
            shots["collage"] = make_collage({name: photograph(browser, part) for name, part in parts.items()})
        finally:
            browser.quit()
        contact_sheet(ensure_sample(), Path(folder) / "sample.png")
        shots["sample"] = Image.open(Path(folder) / "sample.png").convert("RGB")
        for name, picture in shots.items():
            write_jpeg(given.out / f"{name}.jpg", picture, LARGEST)


def write_pages(build: Path, folder: Path) -> tuple[Path, Path]:
    """Write the report on a demo's runs, and the review page of what its members suspect; return both."""
    sample, folds = ensure_sample(), build / "folds.csv"
    report, review, clean = folder / "report.html", folder / "review.html", folder / "clean.csv"
    write_report([build / "runs"], report, folds=folds, data=sample)
    clean_files(sorted((build / "runs").glob("*/oof.csv")), folds, clean, caps=Caps())
    review_files(clean, sample, review)
    return report, review


def photograph(browser: Any, shot: Shot) -> Image.Image:
    """Return a part of a page in light colours, as wide as its window."""
    chrome.show(browser, shot.page, scheme="light", size=(shot.width, shot.height))
    top = int(browser.execute_script(TOP, shot.heading))
    for _ in range(2):  # the review page loads a picture when its card has come near the window
        browser.execute_script("window.scrollTo(0, arguments[0])", top)
        time.sleep(0.5)
        chrome.unloaded(browser)
    bottom = min(top + shot.height, int(browser.execute_script("return document.documentElement.scrollHeight")))
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        chrome.screenshot(browser, Path(file.name), clip=(0, top, shot.width, bottom - top))
        return Image.open(file.name).convert("RGB")


def write_jpeg(path: Path, picture: Image.Image, most: int) -> None:
    """Write a JPEG of at most so many bytes, in the best quality that allows it; UserError where none does."""
    for quality in range(92, 29, -4):
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=quality, optimize=True, progressive=True)
        if content.tell() <= most:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content.getvalue())
            print(f"{path}: {picture.width} x {picture.height}, {content.tell() / 1000:.0f} kB, quality {quality}")
            return
    raise UserError(f"{path} does not fit into {most} bytes; take a smaller part of the page")


def make_collage(parts: dict[str, Image.Image], size: tuple[int, int] = COLLAGE) -> Image.Image:
    """Return pictures side by side, each cut to the same height under its name."""
    width, height = size
    gap, band = 24, 46
    wide = (width - gap * (len(parts) + 1)) // len(parts)
    high = height - band - gap
    collage = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(collage)
    for n, (name, picture) in enumerate(parts.items()):
        left = gap + n * (wide + gap)
        scaled = picture.resize((wide, round(picture.height * wide / picture.width)), Image.Resampling.LANCZOS)
        collage.paste(scaled.crop((0, 0, wide, high)) if scaled.height >= high else scaled, (left, band))
        bottom = band + min(high, scaled.height)
        draw.rectangle((left - 1, band - 1, left + wide, bottom), outline=EDGE)
        draw.text((left, band / 2), name, fill=LETTERS, font=fitting_font(name, 22), anchor="lm")
    return collage


if __name__ == "__main__":
    main()
