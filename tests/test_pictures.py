"""The README's pictures: each is small enough for a page, and the tool that makes them keeps the limit."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cassava_kit.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pictures(monkeypatch):
    """The tool, which takes the browser from the tests of pages."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "report")
    return importlib.import_module("pictures")


@pytest.mark.parametrize("name", ["sample", "report", "review", "notebook", "collage"])
def test_a_picture_of_the_readme_is_readable_and_small(name):
    path = ROOT / "docs" / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.width >= 1200
    assert path.stat().st_size < 300_000


def test_every_picture_that_the_pages_show_is_there():
    for page in (ROOT / "README.md", ROOT / "kernels" / "README.md"):
        for target in re.findall(r"!\[[^\]]*\]\(([^)#]+)\)|<img[^>]+src=\"([^\"]+)\"", page.read_text("utf-8")):
            assert (page.parent / "".join(target)).is_file(), (page.name, target)


def test_a_jpeg_keeps_its_limit_in_the_best_quality_that_does(pictures, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    sizes = []
    for most in (100_000, 40_000):
        pictures.write_jpeg(tmp_path / "a.jpg", noise, most)
        sizes.append((tmp_path / "a.jpg").stat().st_size)
        assert sizes[-1] <= most
    assert sizes[0] > 50_000 > sizes[1] > 30_000
    with pytest.raises(UserError, match="does not fit into 1000 bytes"):
        pictures.write_jpeg(tmp_path / "b.jpg", noise, 1000)
    assert not (tmp_path / "b.jpg").exists()


def test_the_collage_holds_every_part_side_by_side(pictures):
    colours = {"one": (200, 0, 0), "two": (0, 200, 0), "three": (0, 0, 200)}
    parts = {name: Image.new("RGB", (400, 900), colour) for name, colour in colours.items()}
    collage = pictures.make_collage(parts, size=(960, 500))
    middle = [collage.getpixel((960 * (2 * k + 1) // 6, 250)) for k in range(3)]
    assert collage.size == (960, 500) and middle == list(colours.values())


def test_what_is_missing_is_said_before_a_browser_starts(pictures, tmp_path):
    with pytest.raises(UserError, match="run `make demo` first"):
        pictures.main(["--build", str(tmp_path)])
    (tmp_path / "folds.csv").write_text("")
    with pytest.raises(UserError, match="run `make kernels-html` first"):
        pictures.main(["--build", str(tmp_path), "--kernels", str(tmp_path)])
