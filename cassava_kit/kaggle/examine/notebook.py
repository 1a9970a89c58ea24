"""Examine anybody's notebook for what ends submissions: `examine_notebook`. Nothing of it is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cassava_kit.kaggle.examine.augment import ALBUMENTATIONS, augment_findings
from cassava_kit.kaggle.examine.cells import read_cells
from cassava_kit.kaggle.examine.finding import Finding, found_in
from cassava_kit.kaggle.examine.graphs import graph_findings
from cassava_kit.kaggle.examine.internet import internet_findings
from cassava_kit.kaggle.examine.network import forward_calls, network_findings
from cassava_kit.kaggle.examine.paths import FIXED, path_findings
from cassava_kit.kaggle.examine.program import last_name
from cassava_kit.kaggle.examine.reading import Reading
from cassava_kit.kaggle.examine.rows import late_findings, row_findings, submission_writes
from cassava_kit.kaggle.examine.secrets import SECRET, secret_findings
from cassava_kit.kaggle.examine.settings_file import RunSettings, read_settings, setting_findings
from cassava_kit.kaggle.examine.sizes import size_findings
from cassava_kit.kaggle.rehearse.image import image_versions

# Methods that run a network for long, whatever it is called.
RUNS_NETWORK = frozenset({"get_preds", "predict_generator", "fit", "fit_generator", "fit_one_cycle", "predict"})


@dataclass(frozen=True)
class Examination:
    """What was found in a notebook, in the order of its cells, and what could not be examined."""

    notebook: Path
    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found that ends a submission."""
        return all(finding.note for finding in self.findings)

    def values(self) -> dict[str, Any]:
        """Return everything as plain values."""
        found = [asdict(finding) for finding in self.findings]
        return {"notebook": str(self.notebook), "ok": self.ok, "findings": found, "skipped": list(self.skipped)}

    def __str__(self) -> str:
        failed = sum(not finding.note for finding in self.findings)
        said = f"{failed} found in {self.notebook}" if failed else f"nothing found in {self.notebook}"
        skipped = [f"?      {line}" for line in self.skipped]
        return "\n".join([*map(str, self.findings), *skipped, said])


def examine_notebook(notebook: Path, *, root: Path, metadata: Path | None = None) -> Examination:
    """Examine a notebook or script; `root` holds `kernels/image-*.txt`, the versions of Kaggle's images.

    Cells count from 1, Markdown included. Without a metadata file, one beside the notebook that names it is read.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is no notebook, or the metadata is no JSON object.
    """
    source = read_cells(notebook)
    settings = read_settings(source, metadata)
    reading = Reading(source)
    versions = image_versions(root)
    images = {image: found[ALBUMENTATIONS] for image, found in versions.items() if ALBUMENTATIONS in found}
    findings = list(_all_findings(reading, settings, versions))
    hidden = {(found.cell, found.line) for found in findings if found.rule == SECRET}
    shown = {replace(found, code="") if (found.cell, found.line) in hidden else found for found in findings}
    return Examination(notebook, tuple(sorted(shown)), tuple(_skipped(reading, settings, images)))


def _all_findings(
    reading: Reading, settings: RunSettings | None, versions: dict[str, dict[str, str]]
) -> Iterator[Finding]:
    for cell in reading.source.cells:
        if cell.refused is not None:
            yield found_in(
                cell, cell.refused[0], "syntax", f"Python refuses this cell ({cell.refused[1]}); mend or remove it"
            )
    online = settings is not None and settings.internet and settings.competitions == ()
    if not online:  # a notebook with internet and without a competition is no submission
        yield from internet_findings(reading, versions)
    yield from path_findings(reading)
    yield from _missing_sources(reading, settings)
    yield from row_findings(reading)
    images = {image: found[ALBUMENTATIONS] for image, found in versions.items() if ALBUMENTATIONS in found}
    yield from augment_findings(reading, images)
    yield from network_findings(reading)
    yield from graph_findings(reading)
    yield from size_findings(reading)
    yield from secret_findings(reading)
    forward = forward_calls(reading)
    slow = [call.node for call in reading.calls if last_name(call.node.func) in RUNS_NETWORK and not call.name]
    yield from late_findings(reading, [*forward, *slow])
    submits = bool(submission_writes(reading))
    yield from setting_findings(reading.source, settings, submits=submits, trains=bool(forward))


def _missing_sources(reading: Reading, settings: RunSettings | None) -> Iterator[Finding]:
    """Yield written input folders that the metadata attaches no source for."""
    if settings is None or settings.sources is None:
        return
    slugs = {source.rstrip("/").split("/")[1 if "/" in source else 0] for source in settings.sources}
    for finding in path_findings(reading):
        named = re.search(r"input/(?:competitions/|datasets/[^/]+/|models/[^/]+/)?([\w.-]+)", finding.message)
        if named and named[1] not in slugs and named[1] not in ("competitions", "datasets", "models"):
            message = f"no attached source is called {named[1]}; add it to dataset_sources, or competition_sources"
            yield Finding(finding.cell, finding.line, f"{FIXED}: not attached", message, finding.code, finding.note)


def _skipped(reading: Reading, settings: RunSettings | None, images: dict[str, str]) -> Iterator[str]:
    if settings is None:
        yield "metadata: not examined; give it by --kernel-metadata FILE"
    if any(name.split(".")[0] == ALBUMENTATIONS for name in [*reading.names.imports.values(), *reading.names.stars]):
        try:
            here = version(ALBUMENTATIONS)
        except PackageNotFoundError:
            here = "none"
        if set(images.values()) != {here}:
            wanted = ", ".join(sorted(set(images.values())))
            yield f"{ALBUMENTATIONS}: arguments not examined, {here} is here, the image has {wanted}; install that one"
