"""Read what the doctor checks of a bundle, each file once and on demand: `BundleFacts`."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import read_json, sha256_file
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.kernels import KERNEL_METADATA
from cassava_kit.kaggle.pack.manifest import read_manifest
from cassava_kit.kaggle.rehearse.rehearsal import REHEARSAL_REPORT
from cassava_kit.kaggle.send.remote import Remote


@dataclass(frozen=True)
class BundleFacts:
    """A bundle's files and rehearsals, the repository, and Kaggle where it may be asked (`remote`)."""

    root: Path
    bundle: Bundle
    remote: Remote | None = None

    @cached_property
    def notebook(self) -> str:
        """The code of all cells of the notebook."""
        cells = read_json(self.bundle.notebook)["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The dict `SETTINGS` that the notebook was generated with."""
        literal = re.search(r"^SETTINGS = (\{.*?^\})", self.notebook, re.MULTILINE | re.DOTALL)
        if literal is None:
            raise UserError(f"{self.bundle.notebook} has no SETTINGS; package it again")
        return dict(ast.literal_eval(literal[1]))

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The content of `kernel-metadata.json`."""
        return dict(read_json(self.bundle.kernel_dir / KERNEL_METADATA))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the kit's dataset."""
        return read_manifest(self.bundle.kit_dir, "kit")

    @cached_property
    def reports(self) -> list[dict[str, Any]]:
        """The reports of this build's rehearsals of this kernel, in folders `rehearsal*` in the bundle or beside it."""
        home = self.bundle.home
        found = [*home.glob(f"rehearsal*/{REHEARSAL_REPORT}"), *home.parent.glob(f"rehearsal*/{REHEARSAL_REPORT}")]
        reports = [read_json(path) | {"folder": str(path.parent)} for path in sorted(found)]
        wanted = {"build_id": self.bundle.build_id, "kernel": self.bundle.kernel.name}
        return [report for report in reports if all(report.get(name) == value for name, value in wanted.items())]

    @cached_property
    def rehearsals(self) -> list[dict[str, Any]]:
        """The reports of the notebook as it is now."""
        return [report for report in self.reports if report.get("notebook") == sha256_file(self.bundle.notebook)]

    @cached_property
    def runs(self) -> list[dict[str, Any]]:
        """The `run.json` of each rehearsal."""
        paths = [Path(report["folder"]) / "working" / "run.json" for report in self.rehearsals]
        return [read_json(path) for path in paths if path.is_file()]
