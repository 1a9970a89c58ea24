# ruff: noqa: E501 - one cell a line
"""What the doctor says of albumentations arguments is what the library itself does with them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import albumentations as A
import pytest
from foreign_notebooks import examine_cells, of_rule, places

from cassava_kit.kaggle.examine.augment import ALBUMENTATIONS, refusal
from cassava_kit.kaggle.rehearse.image import image_versions

ROOT = Path(__file__).parents[3]
# The arguments of public notebooks of 2019 to 2024, and of today's.
USES: list[tuple[type, tuple[Any, ...], dict[str, Any]]] = [
    (A.RandomResizedCrop, (512, 512), {}),
    (A.RandomResizedCrop, (), {"height": 512, "width": 512}),
    (A.RandomResizedCrop, ((512, 512),), {}),
    (A.RandomResizedCrop, (), {"size": (512, 512), "scale": (0.5, 1.0)}),
    (A.GaussNoise, (), {"var_limit": (10, 50)}),
    (A.GaussNoise, (), {"std_range": (0.1, 0.2)}),
    (A.GaussNoise, (), {"std_range": (10, 50)}),
    (A.CoarseDropout, (), {"max_holes": 8, "max_height": 16}),
    (A.CoarseDropout, (), {"p": 0.5}),
    (A.PadIfNeeded, (), {"min_height": 5, "min_width": 5, "value": 0}),
    (A.Resize, (512, 512), {}),
    (A.Resize, (), {"height": 512}),
    (A.CenterCrop, (224, 224), {"p": 1.0}),
    (A.ElasticTransform, (), {"alpha": 1, "sigma": 50, "alpha_affine": 10}),
    (A.ImageCompression, (), {"quality_lower": 80, "quality_upper": 100}),
    (A.ShiftScaleRotate, (), {"rotate_limit": 10, "value": 0}),
    (A.Normalize, (), {"mean": [0.5] * 3, "std": [0.5] * 3, "max_pixel_value": 255.0, "p": 1.0}),
    (A.HueSaturationValue, (0.2, 0.2, 0.2), {"p": 0.5}),
    (A.Blur, (), {"blur_limit": 2.5}),
    (A.Rotate, (), {"limit": 90, "value": 0, "mask_value": 0}),
    (A.HorizontalFlip, (), {"always_apply": True}),
    (A.Downscale, (), {"scale_min": 0.25, "scale_max": 0.5}),
]


def tried(made: type, args: tuple[Any, ...], keywords: dict[str, Any]) -> str:
    """What the library does: refuses, ignores, or takes them."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            made(*args, **keywords)
        except Exception:
            return "refuses"
    return "ignores" if any("are not valid for transform" in str(each.message) for each in heard) else ""


@pytest.mark.parametrize(("made", "args", "keywords"), USES)
def test_the_verdict_is_the_librarys(made: type, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    assert refusal(made, list(args), keywords).partition(" ")[0] == tried(made, args, keywords)


def test_an_ignored_argument_that_changes_nothing_is_left(tmp_path: Path) -> None:
    """always_apply where the transform is applied always anyway."""
    code = "import albumentations as A\nA.Resize(5, 5, always_apply=True)\nA.Blur(always_apply=True)\nA.Blur(always_apply=False)"
    assert places(examine_cells(tmp_path, code), ALBUMENTATIONS) == [(1, 3)]


def test_names_and_arguments_are_found_at_their_line_through_constants(tmp_path: Path) -> None:
    cells = [
        "from albumentations import (\n    Compose,\n    Cutout, HorizontalFlip,\n    RandomResizedCrop as Crop,\n)",
        "import albumentations as A\nclass CFG:\n    size = 512",
        "CFG.other = 1\nt = Compose([\n    Crop(CFG.size, CFG.size),\n    A.Flip(),\n    HorizontalFlip(p=.5),\n    A.RandomBrightness(),\n])",
    ]
    found = of_rule(examine_cells(tmp_path, *cells), ALBUMENTATIONS)
    assert [(each.cell, each.line) for each in found] == [(1, 3), (3, 3), (3, 4), (3, 6)]
    assert "CoarseDropout(" in found[0].message and "refuses RandomResizedCrop(512, 512)" in found[1].message


def test_another_version_than_the_images_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {found[ALBUMENTATIONS] for found in image_versions(ROOT).values()} == {A.__version__}
    for module in ("augment", "notebook"):
        monkeypatch.setattr(f"cassava_kit.kaggle.examine.{module}.version", lambda name: "1.3.1")
    found = examine_cells(tmp_path, "import albumentations as A\nA.Flip()")
    assert not of_rule(found, ALBUMENTATIONS) and "1.3.1 is here, the image has 2.0.8" in found.skipped[0]
