"""Read a notebook, or a script, as cells of Python that keep their line numbers: `read_cells`.

IPython's own transformers turn magics and shell lines into calls of `get_ipython()`, so that one reading of the syntax
tree sees them all.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import find_file

# Cell magics whose body is Python, and those whose body is a shell's.
PYTHON_MAGICS = frozenset({"time", "timeit", "capture", "prun", "python", "python3", "pypy", "memit", "mprun"})
SHELL_MAGICS = frozenset({"bash", "sh", "script", "system", "sx", "!"})
MAGIC = re.compile(r"%%(!|\w+)[ \t]*(.*)")
# How a percent script of jupytext marks a cell, and its Markdown.
PERCENT = re.compile(r"^# ?%%(.*)$")


@dataclass(frozen=True)
class ShellLine:
    """One command of a shell, with the line of its cell."""

    line: int
    text: str


@dataclass(frozen=True)
class Cell:
    """One cell: its number, from 1 and with Markdown counted, its source, and its syntax tree where it is Python.

    `shell` are the lines of a `%%bash` cell, `outputs` the text that the notebook keeps of its last run. `first_line`
    is the line of the file at which a script's cell begins, less one; 0 in a notebook.
    """

    number: int
    source: str
    code: bool
    tree: ast.Module | None = None
    shell: tuple[ShellLine, ...] = ()
    outputs: str = ""
    refused: tuple[int, str] | None = None
    first_line: int = 0

    def text_of(self, line: int) -> str:
        """Return one line of the source, stripped."""
        lines = self.source.splitlines()
        return lines[line - 1].strip() if 0 < line <= len(lines) else ""


@dataclass(frozen=True)
class NotebookSource:
    """A notebook's cells, its file, and the metadata that it holds."""

    path: Path
    cells: tuple[Cell, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


def read_cells(path: Path) -> NotebookSource:
    """Read a notebook (`.ipynb`) or a script (`.py`, in cells where it has `# %%` lines).

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is neither; or the notebook's JSON has no cells.
    """
    find_file(path, "notebook", "give an .ipynb or a .py")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} must be a notebook (.ipynb) or a script (.py) in UTF-8; save it again") from None
    if path.suffix == ".py":
        return NotebookSource(path, tuple(_script_cells(text)))
    try:
        content = json.loads(text)
        given = content["cells"] if "cells" in content else content["worksheets"][0]["cells"]
        cells = tuple(_notebook_cell(number, cell) for number, cell in enumerate(given, start=1))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise UserError(
            f"{path} must be a notebook, JSON with a list of cells, or a script (.py); open it in Jupyter and save it"
        ) from None
    metadata = content.get("metadata")
    return NotebookSource(path, cells, metadata if isinstance(metadata, dict) else {})


def _notebook_cell(number: int, cell: dict[str, Any]) -> Cell:
    source = _joined(cell.get("source", cell.get("input", "")))
    outputs = "\n".join(_output_text(output) for output in cell.get("outputs") or [])
    if cell["cell_type"] != "code":
        return Cell(number, source, False, outputs=outputs)
    return parse_cell(number, source, outputs=outputs)


def _joined(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _output_text(output: dict[str, Any]) -> str:
    data = output.get("data") or {}
    return _joined(output.get("text") or data.get("text/plain") or output.get("traceback") or "")


def _script_cells(text: str) -> list[Cell]:
    """Return the cells of a script; one without `# %%` lines is a single cell."""
    cells, begun, markdown = list[tuple[int, bool, list[str]]](), 0, False
    lines: list[str] = []
    for place, line in enumerate(text.splitlines()):
        if marker := PERCENT.match(line):
            if any(map(str.strip, lines)):
                cells.append((begun, markdown, lines))
            begun, markdown, lines = place + 1, "[markdown]" in marker[1], []
        else:
            lines.append(line)
    cells.append((begun, markdown, lines))
    return [
        Cell(number, "\n".join(body), False, first_line=start)
        if is_text
        else parse_cell(number, "\n".join(body), first_line=start)
        for number, (start, is_text, body) in enumerate(cells, start=1)
    ]


def parse_cell(number: int, source: str, *, outputs: str = "", first_line: int = 0) -> Cell:
    """Return a code cell with its syntax tree; lines keep their numbers."""
    lines = source.splitlines()
    first = next((place for place, line in enumerate(lines) if line.strip()), None)
    magic = MAGIC.match(lines[first].strip()) if first is not None else None
    if magic and first is not None:
        name, rest = magic[1], magic[2]
        if name in SHELL_MAGICS:
            shell = shell_lines("\n".join([*[""] * (first + 1), *lines[first + 1 :]]))
            return Cell(number, source, True, shell=shell, outputs=outputs, first_line=first_line)
        if name not in PYTHON_MAGICS and not (name == "writefile" and rest.strip().endswith(".py")):
            return Cell(number, source, True, outputs=outputs, first_line=first_line)
        lines[first] = ""
    try:
        tree = ast.parse(plain_python("\n".join(lines) + "\n"))
    except (SyntaxError, ValueError) as error:
        refused = (getattr(error, "lineno", None) or 1, getattr(error, "msg", None) or str(error))
        return Cell(number, source, True, outputs=outputs, refused=refused, first_line=first_line)
    return Cell(number, source, True, tree, outputs=outputs, first_line=first_line)


def plain_python(source: str) -> str:
    """Return a cell as Python: magics and shell lines become calls, each on its first line, and no line moves."""
    from IPython.core.inputtransformer2 import TransformerManager, leading_indent

    manager, lines, changed = TransformerManager(), leading_indent(source.splitlines(keepends=True)), True
    while changed:
        before = lines
        changed, lines = manager.do_one_token_transform(before)
        if lost := len(before) - len(lines):
            at = next(place for place, line in enumerate(lines) if line != before[place])
            lines = [*lines[: at + 1], *["\n"] * lost, *lines[at + 1 :]]
    return "".join(lines)


def shell_lines(text: str) -> tuple[ShellLine, ...]:
    """Return the commands of a shell script; a line that ends in a backslash goes on in the next."""
    found, waiting, begun = list[ShellLine](), "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        begun = begun or number
        if line.rstrip().endswith("\\"):
            waiting += line.rstrip()[:-1] + " "
            continue
        whole = (waiting + line).strip()
        if whole and not whole.startswith("#"):
            found.append(ShellLine(begun, whole))
        waiting, begun = "", 0
    return tuple(found)
