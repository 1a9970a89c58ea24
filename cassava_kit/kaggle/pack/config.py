"""Names on Kaggle of datasets and kernels, from the repository's `dataset-metadata.json`: `read_config`."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from cassava_kit.competition import COMPETITION_FILE, Competition, current
from cassava_kit.errors import UserError
from cassava_kit.files import read_json

METADATA_FILE = "dataset-metadata.json"
PACKAGE_DIR = Path(__file__).resolve().parents[2]
# The part of the repository inside an installed wheel: kernels/, pyproject.toml, dataset-metadata.json.
INSTALLED_PROJECT = PACKAGE_DIR / "project"
PLACEHOLDER_OWNER = "your-kaggle-name"
# Packages that the kernels need and Kaggle's image lacks. All are pure Python: one wheel serves both images.
COMMAND_LINE = ("typer", "rich", "shellingham", "annotated-doc")
EXTRA_WHEELS = ("ttach", "cleanlab", "lightly", "lightning", *COMMAND_LINE)
# Names of licences that Kaggle lists for datasets (docs/datasets_metadata.md of its client).
LICENCES = (
    *("CC0-1.0", "CC-BY-3.0", "CC-BY-3.0-IGO", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0"),
    *("CC-BY-ND-4.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-3.0-IGO", "CC-BY-NC-SA-4.0", "CDLA-Permissive-1.0"),
    *("CDLA-Sharing-1.0", "ODbL-1.0", "DbCL-1.0", "ODC-BY-1.0", "PDDL", "GPL-2.0", "GPL-3.0", "LGPL-3.0", "AGPL-3.0"),
    *("FDL-1.3", "apache-2.0", "EU-ODP-Legal-Notice", "US-Government-Works", "copyright-authors", "other", "unknown"),
)
DESCRIPTION = "Packed by Cassava Kit. The kit's code is under the MIT licence; every wheel holds its own licence."
# Kaggle cuts a kernel's title at 50 characters, and the longest is the slug with this behind it.
LONGEST_KERNEL = "-ensemble-submission"
LONGEST_TITLE = 50
LONGEST_SLUG = LONGEST_TITLE - len(LONGEST_KERNEL)
# The libraries whose version decides whether a kernel runs; their ranges come from pyproject.toml.
TESTED_LIBRARIES = ("torch", "torchvision", "timm", "albumentations")


@dataclass(frozen=True)
class KaggleConfig:
    """Owner, dataset slug and title, and licence, from which every other name on Kaggle is derived."""

    owner: str
    slug: str
    title: str
    licence: str

    @property
    def kit_dataset(self) -> str:
        """Id of the dataset of the code, owner/slug."""
        return f"{self.owner}/{self.slug}"

    @property
    def weights_dataset(self) -> str:
        """Id of the dataset of the weights, owner/slug."""
        return f"{self.owner}/{self.slug}-weights"

    def kernel_id(self, name: str) -> str:
        """Return the id of the kernel `kernels/<name>`, owner/slug."""
        return f"{self.owner}/{self.slug}-{name}"

    def kernel_title(self, name: str) -> str:
        """Return the title of a kernel. Kaggle derives the slug from the title and warns where the two differ."""
        return f"{self.slug}-{name}".replace("-", " ").title()

    def dataset_metadata(self, dataset: str) -> dict[str, Any]:
        """Return the content of `dataset-metadata.json` for the kit's or the weights' dataset."""
        title = self.title if dataset == self.kit_dataset else f"{self.title} Weights"
        return {
            "id": dataset,
            "title": title,
            "description": DESCRIPTION,
            "licenses": [{"name": self.licence}],
            "isPrivate": True,
        }


def project_root() -> Path:
    """Return the folder that bundles are packed from: the repository, or the installed kit's copy of its files."""
    repository = PACKAGE_DIR.parent
    return repository if (repository / "kernels").is_dir() else INSTALLED_PROJECT


# How the commands of a submission are called in this folder: the repository has submit.py, every other folder the verb.
SUBMIT_COMMAND = "python submit.py" if Path("submit.py").is_file() else "cassava-kit submit"


def read_config(root: str | Path, *, owner: str | None = None, competition: Competition | None = None) -> KaggleConfig:
    """Read and check `dataset-metadata.json` in `root`.

    `owner` replaces the owner in the file. The `dataset` of a competition replaces slug and title.

    Raises:
        FileNotFoundError: `root` has no such file.
        UserError: Kaggle would refuse it. The slug must have 6 to 30 characters of a-z, 0-9 and '-', the title 6 to 42,
            and the one licence must be of Kaggle's list.
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
        raise UserError(f"{path}: id must be owner/slug, the slug of a-z, 0-9 and '-', got {owner}/{slug}")
    if not 6 <= len(slug) <= LONGEST_SLUG:
        raise UserError(
            f"{path}: the slug must have 6 to {LONGEST_SLUG} characters, because Kaggle takes {LONGEST_TITLE} for a "
            f"kernel's title and {LONGEST_KERNEL!r} is added; {slug!r} has {len(slug)}"
        )
    if not 6 <= len(title) <= 42:
        raise UserError(f"{path}: title must have 6 to 42 characters (' Weights' is added to it), got {title!r}")
    if len(licences) != 1 or not licences[0].get("name"):
        raise UserError(f"{Path(root) / METADATA_FILE}: licenses must hold exactly one {{name: ...}}, got {licences}")
    licence = str(licences[0]["name"])
    if licence not in LICENCES:
        raise UserError(
            f"{Path(root) / METADATA_FILE}: Kaggle does not list the licence {licence!r} for datasets; "
            f"take one of {', '.join(LICENCES)}"
        )
    return KaggleConfig(owner, slug, title, licence)


def library_ranges(root: str | Path) -> dict[str, str]:
    """Return the version ranges of the libraries that decide whether a kernel runs, as `pyproject.toml` writes them."""
    path = Path(root) / "pyproject.toml"
    if not path.is_file():
        return {}
    declared = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["dependencies"]
    requirements = [Requirement(line) for line in declared]
    return {each.name: str(each.specifier) for each in requirements if each.name in TESTED_LIBRARIES}
