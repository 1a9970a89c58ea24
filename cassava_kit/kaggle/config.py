"""The one place that says what the datasets and kernels are called on Kaggle: the root's `dataset-metadata.json`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cassava_kit.competition import COMPETITION_FILE, Competition, current
from cassava_kit.files import read_json

METADATA_FILE = "dataset-metadata.json"
PLACEHOLDER_OWNER = "your-kaggle-name"
# What the kernels need and Kaggle's image lacks; all are pure Python, so one wheel serves every Python of the image.
COMMAND_LINE = ("typer", "rich", "shellingham", "annotated-doc")
EXTRA_WHEELS = ("ttach", "cleanlab", "lightly", "lightning", *COMMAND_LINE)
# The libraries whose version decides whether a kernel runs; their ranges come from requirements.txt.
TESTED_LIBRARIES = ("torch", "torchvision", "timm", "albumentations")


@dataclass(frozen=True)
class KaggleConfig:
    """Owner, dataset slug and title, and the licence; every other name on Kaggle is made from these."""

    owner: str
    slug: str
    title: str
    licence: str

    @property
    def kit_dataset(self) -> str:
        """Id of the dataset that carries the code, owner/slug."""
        return f"{self.owner}/{self.slug}"

    @property
    def weights_dataset(self) -> str:
        """Id of the dataset that carries the weights."""
        return f"{self.owner}/{self.slug}-weights"

    def kernel_id(self, name: str) -> str:
        """Id of the kernel kept in `kernels/<name>`."""
        return f"{self.owner}/{self.slug}-{name}"

    def kernel_title(self, name: str) -> str:
        """A title whose slug is the kernel's: Kaggle makes the slug from the title and warns where they differ."""
        return f"{self.slug}-{name}".replace("-", " ").title()

    def dataset_metadata(self, dataset: str) -> dict[str, Any]:
        """The `dataset-metadata.json` of the kit's or the weights' dataset."""
        title = self.title if dataset == self.kit_dataset else f"{self.title} Weights"
        return {"id": dataset, "title": title, "licenses": [{"name": self.licence}], "isPrivate": True}


def read_config(root: str | Path, *, owner: str | None = None, competition: Competition | None = None) -> KaggleConfig:
    """Read and check `dataset-metadata.json`; `owner` stands in for the one written there.

    A competition that has a `dataset` of its own gives slug and title.

    ValueError where Kaggle would refuse it: slug of letters, digits and '-', title of 6 to 50 characters, one licence.
    """
    path = Path(root) / METADATA_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; it names the dataset: {{id: owner/slug, title, licenses: [{{name}}]}}")
    raw = read_json(path)
    written, _, slug = str(raw.get("id", "")).partition("/")
    owner, title, licences = owner or written, str(raw.get("title", "")), raw.get("licenses") or []
    if own := (competition or current()).dataset:
        path, slug, title = Path(COMPETITION_FILE), own, own.replace("-", " ").title()
    if not re.fullmatch(r"[A-Za-z0-9_-]+", owner) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise ValueError(f"{path}: id must be owner/slug, the slug of a-z, 0-9 and '-', got {owner}/{slug}")
    if not 6 <= len(slug) <= 42:
        raise ValueError(f"{path}: the slug must have 6 to 42 characters ('-weights' is added to it), got {slug!r}")
    if not 6 <= len(title) <= 42:
        raise ValueError(f"{path}: title must have 6 to 42 characters (' Weights' is added to it), got {title!r}")
    if len(licences) != 1 or not licences[0].get("name"):
        raise ValueError(f"{path}: licenses must hold exactly one {{name: ...}}, got {licences}")
    return KaggleConfig(owner, slug, title, str(licences[0]["name"]))


def library_ranges(root: str | Path) -> dict[str, str]:
    """Version ranges of the libraries that decide whether a kernel runs, as `requirements.txt` writes them."""
    path = Path(root) / "requirements.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = [re.match(r"\s*([A-Za-z0-9_.-]+)\s*([<>=!~][^#;]*)", line) for line in lines]
    ranges = {match[1].lower(): match[2].replace(" ", "").strip() for match in found if match}
    return {name: ranges[name] for name in TESTED_LIBRARIES if name in ranges}
