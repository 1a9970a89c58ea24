"""What the doctor says of one place of a notebook: `Finding`, made by `found_at`."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from cassava_kit.kaggle.examine.cells import Cell
from cassava_kit.kaggle.examine.reading import Reading

METADATA_CELL = 0


@dataclass(frozen=True, order=True)
class Finding:
    """One cause of failure and its place; cells and lines count from 1, cell 0 is the metadata file.

    `note`: why it ends no run as it stands, such as that nothing calls the function around it; empty otherwise.
    """

    cell: int
    line: int
    rule: str
    message: str
    code: str = ""
    note: str = ""

    def __str__(self) -> str:
        place = f"cell {self.cell}, line {self.line}" if self.cell else f"metadata, line {self.line}"
        mark = "note   " if self.note else "FAILED "
        unused = f" ({self.note})" if self.note else ""
        shown = f"\n       {self.code}" if self.code else ""
        return f"{mark}{place}: {self.rule}: {self.message}{unused}{shown}"


def note_of(reading: Reading, *nodes: ast.AST | None) -> str:
    """Return why code ends no run as it stands; empty where it runs."""
    uncalled = any(node is not None and reading.runs(node) == "uncalled" for node in nodes)
    return "nothing calls the function around it" if uncalled else ""


def found_at(reading: Reading, node: ast.AST, rule: str, message: str) -> Finding:
    """Return a finding at a node of the syntax tree."""
    cell, line = reading.cell_of[node], getattr(node, "lineno", 1)
    return found_in(cell, line, rule, message, note=note_of(reading, node))


def found_in(cell: Cell, line: int, rule: str, message: str, *, note: str = "", code: str | None = None) -> Finding:
    """Return a finding at a line of a cell; `code` replaces the line that is shown."""
    shown = cell.text_of(line) if code is None else code
    return Finding(cell.number, cell.first_line + line, rule, message, shown[:120], note)


def place_of(reading: Reading, node: ast.AST) -> str:
    """Return where a node is, as text."""
    cell = reading.cell_of[node]
    return f"cell {cell.number}, line {cell.first_line + getattr(node, 'lineno', 1)}"
