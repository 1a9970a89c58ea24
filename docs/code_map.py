"""Write `docs/code-map.md`, a line a file, from the docstrings: `python docs/code_map.py`. Entry point: `code_map`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INTRODUCTION = """# Code map

After this page you can find the file that does a thing. Each line is the first sentence of the file's own docstring.
`python docs/code_map.py` writes this page, and a test holds it against the tree.

A room imports the rooms before it alone: errors, competition, settings, files ← models, data ← evidence ← inference ←
training, kaggle ← report ← cli. `models` and `data` do not know each other. Neither do `training` and `kaggle`, nor
`kaggle` and `report`. Nothing imports `cli`. `tests/test_imports.py` holds these rules. The tests mirror the package.
"""


def code_map(root: Path = ROOT) -> str:
    """Return the page: a section for each folder of the package, the notebooks and the benchmarks."""
    parts = [INTRODUCTION]
    folders = sorted({path.parent for path in (root / "cassava_kit").rglob("*.py")})
    for folder in [*folders, root / "kernels", root / "benchmarks"]:
        files = sorted(folder.rglob("*.py") if folder.name == "kernels" else folder.glob("*.py"))
        about = describe(folder / "__init__.py") if (folder / "__init__.py") in files else ""
        rows = [f"| `{path.relative_to(folder)}` | {describe(path)} |" for path in files if path.name != "__init__.py"]
        heading = [f"## {folder.relative_to(root)}/", *([about] if about else [])]
        parts.append("\n\n".join([*heading, "\n".join(["| file | what it is for |", "|---|---|", *rows])]) + "\n")
    return "\n".join(parts)


def describe(path: Path) -> str:
    """Return the first sentence of a module's docstring; of a notebook its title, of a cell its first comment.

    A cell without a comment is described by its first function.
    """
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    docstring = ast.get_docstring(tree)
    if docstring is not None:
        first = " ".join(docstring.split("\n\n")[0].split())
        return re.split(r"(?<=[.?])(?<!e\.g\.) (?=[A-Z`])", first)[0].replace("|", "\\|")
    titles = re.findall(r"^# # (.+)$", text, flags=re.MULTILINE)
    comments = re.findall(r"^# (?!ruff|%|include)(.+)$", text, flags=re.MULTILINE)
    functions = [ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [*titles, *comments, *functions, ""][0]


if __name__ == "__main__":
    (ROOT / "docs" / "code-map.md").write_text(code_map(), encoding="utf-8")
