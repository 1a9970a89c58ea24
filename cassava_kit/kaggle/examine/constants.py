"""Work on constants, where some parts are not known: comparisons, text with holes, parameters' defaults."""

from __future__ import annotations

import ast
from typing import Any

from cassava_kit.kaggle.examine.program import Function, parameter_names


class _Unknown:
    """Stands for what only a run would tell."""

    def __repr__(self) -> str:
        return "not known"

    def __bool__(self) -> bool:
        return False


NOT_KNOWN = _Unknown()
# Stands in a string for a part that is not known.
HOLE = "\0"


def compare_constants(operator: ast.cmpop, a: Any, b: Any) -> bool | None:
    """Return the outcome of a comparison of two constants; None where Python refuses it, or it is not known."""
    try:
        if isinstance(operator, ast.Eq | ast.Is):
            return bool(a == b)
        if isinstance(operator, ast.NotEq | ast.IsNot):
            return bool(a != b)
        if isinstance(operator, ast.Lt):
            return bool(a < b)
        if isinstance(operator, ast.Gt):
            return bool(a > b)
        if isinstance(operator, ast.LtE):
            return bool(a <= b)
        if isinstance(operator, ast.GtE):
            return bool(a >= b)
        inside = a in b
    except TypeError:
        return None
    return inside if isinstance(operator, ast.In) else not inside


def has_parameter(scope: ast.AST, name: str) -> bool:
    return isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and name in parameter_names(scope)


def default_of(function: Function, name: str) -> ast.expr | None:
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults = dict(zip([arg.arg for arg in reversed(positional)], reversed(given.defaults), strict=False))
    named = {arg.arg: value for arg, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value}
    return (defaults | named).get(name)


def fill_percent(pattern: str, data: Any) -> str | _Unknown:
    given = data if isinstance(data, tuple) else (data,)
    if any(each is NOT_KNOWN for each in given):
        return pattern.partition("%")[0] + HOLE
    try:
        return pattern % given
    except (TypeError, ValueError):
        return NOT_KNOWN


def fill_braces(pattern: str, given: list[str], named: dict[str, str]) -> str:
    try:
        return pattern.format(*given, **named)
    except (IndexError, KeyError, ValueError, AttributeError):
        return pattern.partition("{")[0] + HOLE
