"""What an expression may be, followed through names, classes, dicts, paths and parameters: `Evaluator`."""

from __future__ import annotations

import ast
import operator
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from cassava_kit.kaggle.examine.constants import (
    HOLE,
    NOT_KNOWN,
    compare_constants,
    default_of,
    fill_braces,
    fill_percent,
    has_parameter,
)
from cassava_kit.kaggle.examine.program import Program

# Functions that return the text or path that they are given.
WRAPPERS = frozenset({"str", "os.fspath"}) | {
    f"os.path.{name}" for name in ("abspath", "expanduser", "normpath", "realpath")
}
DEEPEST, MOST, MOST_STEPS = 40, 16, 2000
PATHS = frozenset({"pathlib.Path", "pathlib.PurePath", "pathlib.PurePosixPath", "pathlib.PosixPath"})
# What a name means that the notebook imports nowhere, e.g. where a cell is left out.
UNIMPORTED = {"join": "os.path.join", "Path": "pathlib.Path"}
SAME_PATH = frozenset({"as_posix", "resolve", "absolute", "expanduser", "strip", "rstrip", "__str__"})
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class PossibleValue:
    """One possible value and the node that says so, where it would be changed."""

    data: Any
    node: ast.AST


class Evaluator:
    """Evaluates expressions of one program without running it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._busy: set[ast.AST] = set()
        self._memory: dict[ast.AST, list[PossibleValue]] = {}
        # Whether a value was given up, because of a circle or of too many steps: it is not remembered then.
        self._cut, self._steps = False, 0

    def values(self, node: ast.AST) -> list[PossibleValue]:
        """Return the possible values; NOT_KNOWN is among them where there may be others."""
        if node in self._memory:
            return self._memory[node]
        outermost = not self._busy
        if outermost:
            self._steps = MOST_STEPS
        self._steps -= 1
        if len(self._busy) > DEEPEST or node in self._busy or self._steps < 0:
            self._cut = True
            return [PossibleValue(NOT_KNOWN, node)]
        outer_cut, self._cut = self._cut, False
        self._busy.add(node)
        try:
            found = self._values(node)[:MOST] or [PossibleValue(NOT_KNOWN, node)]
        finally:
            self._busy.discard(node)
        if outermost or not self._cut:
            self._memory[node] = found
        self._cut = (self._cut or outer_cut) and not outermost
        return found

    def known(self, node: ast.AST | None) -> list[PossibleValue]:
        """Return the possible values that are known."""
        return [] if node is None else [value for value in self.values(node) if value.data is not NOT_KNOWN]

    def one(self, node: ast.AST | None) -> Any:
        """Return the value where there is just one and it is known, else NOT_KNOWN."""
        values = [] if node is None else self.values(node)
        return values[0].data if len(values) == 1 else NOT_KNOWN

    def truth(self, node: ast.expr) -> bool | None:
        """Return whether a condition always or never holds; None where that is not known."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.truth(node.operand)
            return None if inner is None else not inner
        if isinstance(node, ast.BoolOp):
            parts = [self.truth(each) for each in node.values]
            short = isinstance(node.op, ast.Or)
            if short in parts:
                return short
            return None if None in parts else not short
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._compared(node)
        if isinstance(node, ast.Name) and node.id == "__name__":
            return None
        values = self.values(node)
        if not values or any(value.data is NOT_KNOWN for value in values):
            return None
        found = {bool(value.data) for value in values}
        return found.pop() if len(found) == 1 else None

    def _compared(self, node: ast.Compare) -> bool | None:
        left, right = self.values(node.left), self.values(node.comparators[0])
        if isinstance(node.left, ast.Name) and node.left.id == "__name__":
            return True
        answers = set()
        for a, b in product(left, right):
            if a.data is NOT_KNOWN or b.data is NOT_KNOWN:
                return None
            answers.add(compare_constants(node.ops[0], a.data, b.data))
        return answers.pop() if len(answers) == 1 else None

    def _values(self, node: ast.AST) -> list[PossibleValue]:
        if isinstance(node, ast.Constant):
            return [PossibleValue(node.value, node)]
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        return handler(node) if handler else [PossibleValue(NOT_KNOWN, node)]

    def _joinedstr(self, node: ast.JoinedStr) -> list[PossibleValue]:
        parts = [[str(part.value)] if isinstance(part, ast.Constant) else self._texts(part) for part in node.values]
        return [PossibleValue("".join(chosen), node) for chosen in islice(product(*parts), MOST)]

    def _formattedvalue(self, node: ast.FormattedValue) -> list[PossibleValue]:
        return self.values(node.value)

    def _texts(self, node: ast.AST) -> list[str]:
        return [HOLE if value.data is NOT_KNOWN else str(value.data) for value in self.values(node)]

    def _all(self, given: Sequence[ast.expr | None], node: ast.AST) -> list[PossibleValue]:
        """Return the values of every expression that a name is given; None stands for one that is not known."""
        return [v for each in given for v in ([PossibleValue(NOT_KNOWN, node)] if each is None else self.values(each))]

    def _name(self, node: ast.Name) -> list[PossibleValue]:
        found = self.program.assigned(node)
        if found is not None:
            return self._all(found, node)
        scope = self.program.scope_of(node)
        while scope is not None:
            if (given := self._parameter(scope, node.id)) is not None:
                return given
            scope = self.program.scope_of(scope)
        return [PossibleValue(NOT_KNOWN, node)]

    def _parameter(self, scope: ast.AST, name: str) -> list[PossibleValue] | None:
        """Return what calls and the default give to a parameter; None where the function has none of that name."""
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            return (
                [PossibleValue(NOT_KNOWN, scope)]
                if isinstance(scope, ast.Lambda) and has_parameter(scope, name)
                else None
            )
        if not has_parameter(scope, name):
            return None
        in_class = self.program.class_of(scope)
        method = in_class is not None and in_class is self.program.parents.get(scope)
        called = in_class.name if method and in_class and scope.name == "__init__" else scope.name
        default, found, given_always = default_of(scope, name), list[PossibleValue](), True
        place = [arg.arg for arg in [*scope.args.posonlyargs, *scope.args.args]]
        static = any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in scope.decorator_list)
        at = place.index(name) - (method and not static) if name in place else None
        calls = self.program.callers.get(called, [])
        for call in calls:
            argument = next((each.value for each in call.keywords if each.arg == name), None)
            if argument is None and at is not None and 0 <= at < len(call.args):
                argument = call.args[at]
            if argument is not None and not isinstance(argument, ast.Starred):
                found += self.values(argument)
            else:
                given_always = False
            if any(each.arg is None for each in call.keywords) or any(isinstance(a, ast.Starred) for a in call.args):
                found.append(PossibleValue(NOT_KNOWN, call))
        if not calls or not given_always:
            found += self.values(default) if default is not None else [PossibleValue(NOT_KNOWN, scope)]
        return found

    def _attribute(self, node: ast.Attribute) -> list[PossibleValue]:
        for owner in self._owners(node.value):
            if found := self.program.names.values.get((None, f"{owner}.{node.attr}")):
                return self._all(found, node)
        held = [value for value in self.values(node.value) if isinstance(value.data, dict)]
        picked = [PossibleValue(value.data[node.attr], value.node) for value in held if node.attr in value.data]
        if not picked and node.attr == "parent":
            return [
                PossibleValue(posixpath.dirname(value.data), node)
                for value in self.values(node.value)
                if isinstance(value.data, str)
            ]
        return picked

    def _owners(self, node: ast.expr) -> list[str]:
        """Return the classes whose attributes an object has: itself, the class it is made of, and those below it."""
        if not isinstance(node, ast.Name):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                return self._family(node.func.id)
            return []
        if node.id in ("self", "cls") and (owner := self.program.class_of(node)):
            return self._family(owner.name)
        found = [node.id, *self._family(node.id)]
        for value in self.program.assigned(node) or []:
            if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
                found += self._family(value.func.id)
            elif isinstance(value, ast.Name) and value.id != node.id:
                found += self._family(value.id)
        scope = self.program.scope_of(node)
        if scope is not None:  # a parameter: the classes that calls hand in
            found += [name for name in self._handed(scope, node.id) if name not in found]
        return found

    def _handed(self, scope: ast.AST, name: str) -> list[str]:
        if not isinstance(scope, ast.FunctionDef) or not has_parameter(scope, name):
            return []
        handed = list[str]()
        owner = self.program.class_of(scope)
        called = owner.name if owner and scope.name == "__init__" else scope.name
        for call in self.program.callers.get(called, []):
            for argument in [*call.args, *(each.value for each in call.keywords if each.arg == name)]:
                if isinstance(argument, ast.Name) and argument.id in self.program.classes:
                    handed += self._family(argument.id)
        return handed

    def _family(self, name: str) -> list[str]:
        """Return a class and those that it inherits from."""
        made = self.program.classes.get(name)
        if made is None:
            return []
        above = [base.id for base in made.bases if isinstance(base, ast.Name) and base.id != name]
        return [name, *(each for base in above for each in self._family(base))]

    def _subscript(self, node: ast.Subscript) -> list[PossibleValue]:
        keys = self.values(node.slice)
        found = list[PossibleValue]()
        if isinstance(node.value, ast.Name):
            for key in keys:
                for each in self.program.names.values.get((None, f"{node.value.id}[{key.data!r}]"), []):
                    found += [PossibleValue(NOT_KNOWN, node)] if each is None else self.values(each)
        for value in self.values(node.value):
            for key in keys:
                try:
                    picked = value.data[key.data]
                except (TypeError, KeyError, IndexError):
                    continue
                found.append(picked if isinstance(picked, PossibleValue) else PossibleValue(picked, value.node))
        return found

    def _ifexp(self, node: ast.IfExp) -> list[PossibleValue]:
        known = self.truth(node.test)
        chosen = [node.body] if known is True else [node.orelse] if known is False else [node.body, node.orelse]
        return [value for each in chosen for value in self.values(each)]

    def _boolop(self, node: ast.BoolOp) -> list[PossibleValue]:
        known = self.truth(node)
        return [PossibleValue(known, node)] if known is not None else [PossibleValue(NOT_KNOWN, node)]

    def _compare(self, node: ast.Compare) -> list[PossibleValue]:
        known = self.truth(node)
        return [PossibleValue(NOT_KNOWN if known is None else known, node)]

    def _unaryop(self, node: ast.UnaryOp) -> list[PossibleValue]:
        operand = self.one(node.operand)
        if operand is not NOT_KNOWN and isinstance(node.op, ast.USub) and isinstance(operand, int | float):
            return [PossibleValue(-operand, node)]
        known = self.truth(node) if isinstance(node.op, ast.Not) else None
        return [PossibleValue(NOT_KNOWN if known is None else known, node)]

    def _sequence(self, node: ast.List | ast.Tuple | ast.Set, make: Callable[..., Any]) -> list[PossibleValue]:
        return [PossibleValue(make(self.one(each) for each in node.elts), node)]

    def _list(self, node: ast.List) -> list[PossibleValue]:
        return self._sequence(node, list)

    def _tuple(self, node: ast.Tuple) -> list[PossibleValue]:
        return self._sequence(node, tuple)

    def _dict(self, node: ast.Dict) -> list[PossibleValue]:
        pairs = zip(node.keys, node.values, strict=True)
        entries = {}
        for key, value in pairs:
            if isinstance(key, ast.Constant):
                entries[key.value] = PossibleValue(self.one(value), value)
        return [PossibleValue(entries, node)]

    def _binop(self, node: ast.BinOp) -> list[PossibleValue]:
        found = list[PossibleValue]()
        for a, b in islice(product(self.values(node.left), self.values(node.right)), MOST):
            found.append(PossibleValue(self._combined(node.op, a.data, b.data), node))
        return found

    def _combined(self, op: ast.operator, a: Any, b: Any) -> Any:
        if isinstance(op, ast.Div) and isinstance(a, str):
            return posixpath.join(a, HOLE if b is NOT_KNOWN else str(b))
        if isinstance(op, ast.Add) and (isinstance(a, str) or isinstance(b, str)):
            return "".join(HOLE if each is NOT_KNOWN else str(each) for each in (a, b))
        if isinstance(op, ast.Mod) and isinstance(a, str):
            return fill_percent(a, b)
        if NOT_KNOWN in (a, b) or type(op) not in ARITHMETIC:
            return NOT_KNOWN
        try:
            return ARITHMETIC[type(op)](a, b)
        except (TypeError, ValueError, ZeroDivisionError):
            return NOT_KNOWN

    def _call(self, node: ast.Call) -> list[PossibleValue]:
        name = self.program.qualified(node.func)
        if not name and isinstance(node.func, ast.Name) and node.func.id not in self.program.functions:
            name = UNIMPORTED.get(node.func.id, "")
        if name in PATHS or name in ("os.path.join", "posixpath.join"):
            parts = [self._texts(each) for each in node.args if not isinstance(each, ast.Starred)]
            return [PossibleValue(posixpath.join(*chosen), node) for chosen in islice(product(*parts), MOST) if chosen]
        if name in WRAPPERS:
            return self.values(node.args[0]) if node.args else []
        if name in ("tuple", "list") and len(node.args) == 1:
            made = self.one(node.args[0])
            return [PossibleValue(made, node)] if isinstance(made, tuple | list) else []
        if name in ("int", "float") and len(node.args) == 1:
            number = self.one(node.args[0])
            return (
                [PossibleValue({"int": int, "float": float}[name](number), node)]
                if isinstance(number, int | float)
                else []
            )
        if name == "dict" or (isinstance(node.func, ast.Name) and node.func.id in ("dict", "edict", "SimpleNamespace")):
            entries = {each.arg: PossibleValue(self.one(each.value), each.value) for each in node.keywords if each.arg}
            return [PossibleValue(entries, node)]
        if isinstance(node.func, ast.Attribute):
            return self._method(node, node.func)
        return []

    def _method(self, node: ast.Call, func: ast.Attribute) -> list[PossibleValue]:
        bases = [value.data for value in self.values(func.value) if isinstance(value.data, str)]
        if func.attr == "joinpath":
            parts = [self._texts(each) for each in node.args]
            return [PossibleValue(posixpath.join(*chosen), node) for chosen in islice(product(bases, *parts), MOST)]
        if func.attr in SAME_PATH:
            return [PossibleValue(base, node) for base in bases]
        if func.attr == "format":
            given = [self._texts(each)[0] for each in node.args]
            named = {each.arg: self._texts(each.value)[0] for each in node.keywords if each.arg}
            return [PossibleValue(fill_braces(base, given, named), node) for base in bases]
        return []
