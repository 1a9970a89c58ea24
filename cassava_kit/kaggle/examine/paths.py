"""Rules on paths: input folders that are written out, for the two layouts in which Kaggle mounts them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from cassava_kit.kaggle.examine.constants import HOLE
from cassava_kit.kaggle.examine.finding import Finding, found_at, found_in, note_of
from cassava_kit.kaggle.examine.program import Function, last_name
from cassava_kit.kaggle.examine.reading import Reading
from cassava_kit.kaggle.examine.shell import shell_commands

FIXED = "fixed input path"
# The folder below the input; in the new layout two or three parts deep.
BELOW_INPUT = re.compile(
    r"^(?:/kaggle|\.\.|\.\./\.\./kaggle)/input/(?:(?P<kind>competitions|datasets|models)/)?(?P<name>[^/*?\0]+)"
)
# Functions that ask whether a path is there, and commands whose failure ends nothing.
ASKS = frozenset({"exists", "isdir", "is_dir", "isfile", "is_file", "lexists", "access"})
PRINTS = frozenset({"print", "display", "Markdown", "info", "warn", "warning", "debug", "error"})
HARMLESS = frozenset({"ls", "tree", "du", "find", "head", "tail", "cat", "wc", "echo", "nvidia-smi", "pwd"})


def path_findings(reading: Reading) -> Iterator[Finding]:
    """Yield each place that writes out a folder below the input, unless the code asks whether it is there."""
    given = _guarded(reading)
    for node in reading.nodes:
        if not isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp | ast.Call) or reading.runs(node) == "never":
            continue
        if _is_part(reading, node) or _only_shown(reading, node) or _starts_shell(reading, node):
            continue
        for folder in _folders(reading, node):
            if not _is_guarded(reading, node, folder, given):
                yield found_at(reading, node, FIXED, _advice(folder))
                break
    for command in shell_commands(reading):
        folders = [match for word in command.words[1:] if (match := BELOW_INPUT.match(word.partition("=")[2] or word))]
        if folders and command.name not in HARMLESS:
            note = note_of(reading, command.node)
            yield found_in(command.cell, command.line, FIXED, _advice(folders[0][0]), note=note)


def _advice(folder: str) -> str:
    other = (
        "/kaggle/input/NAME"
        if re.search(r"input/(competitions|datasets|models)/", folder)
        else ("/kaggle/input/competitions/NAME or datasets/OWNER/NAME")
    )
    return (
        f"{folder} is there in one of Kaggle's two layouts alone (the other: {other}); find the folder by a file that "
        "it holds, e.g. Path('/kaggle/input').rglob('sample_submission.csv')"
    )


def _folders(reading: Reading, node: ast.AST) -> list[str]:
    """Return the folders below the input that an expression names, as far as their name is known."""
    texts = [value.data for value in reading.evaluator.known(node) if isinstance(value.data, str)]
    return [match[0] for text in texts if (match := BELOW_INPUT.match(text)) and HOLE not in match[0]]


def _is_part(reading: Reading, node: ast.AST) -> bool:
    """Return whether the folder's name is written in a part of this expression, or in a name that it takes up."""
    parts = [each for each in ast.walk(node) if each is not node and isinstance(each, ast.expr)]
    return not isinstance(node, ast.Constant) and any(_folders(reading, each) for each in parts)


def _only_shown(reading: Reading, node: ast.AST) -> bool:
    """Return whether a text is a docstring, a part of a larger path, a printed line, or `in` a comparison."""
    parent = reading.parents.get(node)
    if isinstance(parent, ast.Expr | ast.FormattedValue | ast.Compare):
        return True
    if isinstance(parent, ast.JoinedStr):  # a part of an f-string, which is looked at as a whole
        return True
    for each in reading.above(node):
        if isinstance(each, ast.Call) and last_name(each.func) in PRINTS:
            return True
        if isinstance(each, ast.stmt):
            return False
    return False


def _starts_shell(reading: Reading, node: ast.AST) -> bool:
    """Return whether a text is a shell's command, which is looked at as words."""
    return any(
        isinstance(each, ast.Call) and (last_name(each.func) in ("system", "getoutput", "run_line_magic", "popen"))
        for each in (node, *reading.above(node))
    )


def _guarded(reading: Reading) -> set[str]:
    """Return the names and the folders that the notebook asks for before it uses them."""
    asked = set[str]()
    for call in reading.calls:
        if last_name(call.node.func) not in ASKS:
            continue
        asked_of = [*call.args, *([call.node.func.value] if isinstance(call.node.func, ast.Attribute) else [])]
        for each in asked_of:
            asked |= {name.id for name in ast.walk(each) if isinstance(name, ast.Name)}
            asked |= set(_folders(reading, each))
    return asked


def _is_guarded(reading: Reading, node: ast.AST, folder: str, asked: set[str]) -> bool:
    """Return whether a path is a candidate: asked for, one of several in a list, or tried in a `try`."""
    if folder in asked:
        return True
    below: ast.AST = node
    for each in reading.above(node):
        if isinstance(each, ast.List | ast.Tuple | ast.Set) and len(each.elts) > 1:
            folders = {found for part in each.elts for found in _folders(reading, part)}
            if len(folders) > 1 and _same_source(folders):
                return True
        if isinstance(each, ast.Assign) and any(name in asked for name in _targets(each)):
            return True
        if isinstance(each, ast.For) and below is each.iter and _targets_of(each.target) & asked:
            return True
        if isinstance(each, ast.Try) and below in each.body and each.handlers:
            return True
        if isinstance(each, Function):
            return False
        below = each
    return False


def _same_source(folders: set[str]) -> bool:
    """Return whether folders are one source in several layouts."""
    return len({folder.rstrip("/").rpartition("/")[2] for folder in folders}) < len(folders) or any(
        re.search(r"input/(competitions|datasets)/", folder) for folder in folders
    )


def _targets(node: ast.Assign) -> set[str]:
    return {name for target in node.targets for name in _targets_of(target)}


def _targets_of(target: ast.expr) -> set[str]:
    return {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}
