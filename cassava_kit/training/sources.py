"""A hash of the code that decides what a run learns: `learning_code_hash`, a part of every run's fingerprint.

The code is found by following names: from the roots (`ROOTS`) to all that they use in the package, except
`LEFT_OUT`. Docstrings, comments, annotations, the texts of errors and the place of a definition do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

PACKAGE = "cassava_kit"
ROOTS = (
    ("training.module", "Classifier"),
    ("training.loaders", "Batches"),
    ("training.fit", "make_batches"),
    ("training.fit", "make_classifier"),
    ("training.fit", "finish_average"),
    ("training.trainer", "make_trainer"),
    ("training.rows", "usable_rows"),
    ("training.rows", "clean_rows"),
    ("training.callbacks", "StopEarly"),
    ("training.callbacks", "KeepBest"),
)
PROBE_ROOTS = (("training.probe", "network_features"), ("training.probe", "fit_head"))
# What these do changes no weight: reading settings and tables, writing files, messages, errors.
LEFT_OUT = {
    *("errors", "files", "settings", "competition", "data.folds", "data.table", "data.cache", "data.images.in_threads"),
    "data.progress",
    *("models.weights.WeightsReport", "training.config", "training.devices.Devices", "training.diverged"),
    *("training.trainer.quiet_lightning", "training.rows.TrainOptions"),
}

Read = Callable[[str], str | None]
Definitions = dict[str, ast.AST]
Roots = tuple[tuple[str, str], ...]


def read_module(module: str) -> str | None:
    """Return the source of a module of the package by its name in it, e.g. `training.module`; None without such one."""
    try:
        spec = importlib.util.find_spec(f"{PACKAGE}.{module}" if module else PACKAGE)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.loader is None:
        return None
    source: str | None = spec.loader.get_source(spec.name)  # type: ignore[attr-defined]
    return source


@cache
def learning_code_hash(read: Read = read_module, *, roots: Roots = ROOTS) -> str:
    """Return the SHA-256 of the definitions that decide what a run learns, as 64 hexadecimal digits.

    `roots` are the (module, name) from which names are followed: those of a recipe's training unless others are given.
    """
    digest = hashlib.sha256()
    for line in sorted(f"{name} {canonical(node)}\n" for (_, name), node in learning_code(read, roots=roots).items()):
        digest.update(line.encode())
    return digest.hexdigest()


def learning_code(read: Read = read_module, *, roots: Roots = ROOTS) -> dict[tuple[str, str], ast.AST]:
    """Return the definitions that a run's outcome follows from, by (module, name).

    Raises:
        LookupError: One of the roots is not where it should be.
    """
    modules: dict[str, Definitions | None] = {}

    def definitions_of(module: str) -> Definitions | None:
        if module not in modules:
            source = read(module)
            modules[module] = None if source is None else definitions(source)
        return modules[module]

    found: dict[tuple[str, str], ast.AST] = {}
    waiting = list(roots)
    for module, name in roots:
        if name not in (definitions_of(module) or {}):
            raise LookupError(f"{PACKAGE}.{module} has no {name}: name the roots of its hash anew")
    while waiting:
        module, name = waiting.pop()
        known = definitions_of(module)
        if (module, name) in found or known is None or name not in known:
            continue
        if module in LEFT_OUT or f"{module}.{name}" in LEFT_OUT:
            continue
        node = known[name]
        if isinstance(node, ast.ImportFrom):
            waiting += imported(node, name)
            continue
        found[module, name] = node
        for used in ast.walk(node):
            if isinstance(used, ast.Name):
                waiting.append((module, used.id))
            elif isinstance(used, ast.ImportFrom):
                waiting += [each for alias in used.names for each in imported(used, alias.asname or alias.name)]
    return found


def definitions(source: str) -> Definitions:
    """Return a module's functions, classes, constants and imports from the package, by name."""
    found: Definitions = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {used.id: node for target in targets for used in ast.walk(target) if isinstance(used, ast.Name)}
    return found


def imported(node: ast.ImportFrom, name: str) -> list[tuple[str, str]]:
    """Return where a name that is imported from the package is defined, as (module, name); nothing for other code."""
    if not (node.module or "").startswith(f"{PACKAGE}."):
        return []
    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    return [((node.module or "").removeprefix(f"{PACKAGE}."), original)]


def canonical(node: Any) -> str:
    """Return the code of a node without docstrings, annotations, and texts of errors; alike in all Python versions."""
    if isinstance(node, list):
        return f"[{','.join(map(canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise):
        return "Raise"
    fields = {name: value for name, value in ast.iter_fields(node) if name not in ("annotation", "returns", "ctx")}
    body = fields.get("body")
    if isinstance(body, list):
        fields["body"] = [each for each in body if not (isinstance(each, ast.Expr) and _is_text(each.value))]
    # Fields that one Python version has and another has not are empty.
    said = [f"{name}={canonical(value)}" for name, value in sorted(fields.items()) if value not in (None, [])]
    return f"{type(node).__name__}({','.join(said)})"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
