"""Notebooks for the doctor's tests: written from cells, with the failures that old public notebooks have."""

from __future__ import annotations

import json
from pathlib import Path

from cassava_kit.kaggle.examine.finding import Finding
from cassava_kit.kaggle.examine.notebook import Examination, examine_notebook

ROOT = Path(__file__).resolve().parents[3]
SLUG = "cassava-leaf-disease-classification"
METADATA = {
    "id": "me/inference",
    "title": "Inference",
    "code_file": "inference.ipynb",
    "language": "python",
    "kernel_type": "notebook",
    "enable_gpu": True,
    "enable_internet": False,
    "machine_shape": "NvidiaTeslaT4",
    "dataset_sources": ["me/my-weights"],
    "competition_sources": [SLUG],
}


def write_notebook(folder: Path, *cells: str, metadata: dict[str, object] | None = None) -> Path:
    """Write a notebook of code cells; a cell that begins with `#md` is Markdown."""
    made = []
    for cell in cells:
        markdown = cell.startswith("#md")
        lines = cell.splitlines(keepends=True)
        made.append({"cell_type": "markdown" if markdown else "code", "metadata": {}, "source": lines, "outputs": []})
    content = {"cells": made, "metadata": metadata or {}, "nbformat": 4, "nbformat_minor": 4}
    path = folder / "inference.ipynb"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def examine_cells(folder: Path, *cells: str, metadata: dict[str, object] | None = None) -> Examination:
    """Return what the doctor says of a notebook of these cells."""
    path = write_notebook(folder, *cells)
    given = folder / "given-metadata.json"
    given.write_text(json.dumps(METADATA if metadata is None else metadata, indent=2), encoding="utf-8")
    return examine_notebook(path, root=ROOT, metadata=given)


def places(examination: Examination, rule: str) -> list[tuple[int, int]]:
    """Return cell and line of each finding of one rule that ends a run."""
    return [(found.cell, found.line) for found in of_rule(examination, rule) if not found.note]


def of_rule(examination: Examination, rule: str) -> list[Finding]:
    """Return the findings of one rule."""
    return [found for found in examination.findings if found.rule == rule]
