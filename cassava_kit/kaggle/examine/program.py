"""What a notebook's names mean, without running it: `Program` resolves imports, scopes and assignments."""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from cassava_kit.kaggle.examine.cells import Cell, NotebookSource

Function = ast.FunctionDef | ast.AsyncFunctionDef
# Nodes of which there is one object for all places.
SHARED = ast.expr_context | ast.operator | ast.cmpop | ast.boolop | ast.unaryop
Scope = ast.AST | None  # None: the notebook's own


@dataclass
class _Names:
    """Where each name is given a value, by scope; attributes as `Class.name` and `self.name`."""

    values: dict[tuple[Scope, str], list[ast.expr | None]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[str, str] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)


class Program:
    """The cells' syntax trees as one program, in their order."""

    def __init__(self, source: NotebookSource) -> None:
        self.source = source
        self.cells = [cell for cell in source.cells if cell.tree is not None]
        self.parents: dict[ast.AST, ast.AST] = {}
        self.cell_of: dict[ast.AST, Cell] = {}
        self.nodes: list[ast.AST] = []
        for cell in self.cells:
            assert cell.tree is not None
            self._place(cell.tree, cell)
        self.functions: dict[str, list[Function]] = defaultdict(list)
        self.classes: dict[str, ast.ClassDef] = {}
        for node in self.nodes:
            if isinstance(node, Function):
                self.functions[node.name].append(node)
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
        self.names = self._collect_names()

    def _place(self, tree: ast.AST, cell: Cell) -> None:
        """Note the cell and the parent of each node, in the order of the source."""
        self.nodes.append(tree)
        self.cell_of[tree] = cell
        for child in ast.iter_child_nodes(tree):
            if not isinstance(child, SHARED):
                self.parents[child] = tree
                self._place(child, cell)

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield the nodes around a node, the nearest first."""
        while node in self.parents:
            node = self.parents[node]
            yield node

    def scope_of(self, node: ast.AST) -> Scope:
        """Return the function around a node; None at the top of a cell. Comprehensions belong to what is around."""
        return next((each for each in self.above(node) if isinstance(each, Function | ast.Lambda)), None)

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        """Return the nearest class around a node."""
        return next((each for each in self.above(node) if isinstance(each, ast.ClassDef)), None)

    def _collect_names(self) -> _Names:
        names = _Names()
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    names.imports[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    if alias.name == "*":
                        names.stars.append(node.module)
                    else:
                        names.imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self._bind(names, target, node.value)
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                self._bind(names, node.target, node.value)
            elif isinstance(node, ast.AugAssign):
                self._bind(names, node.target, None)
            elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
                elements = node.iter.elts if isinstance(node.iter, ast.List | ast.Tuple) else [None]
                for element in elements:
                    self._bind(names, node.target, element)
            elif isinstance(node, ast.With | ast.AsyncWith):
                for item in node.items:
                    if item.optional_vars is not None:
                        self._bind(names, item.optional_vars, None)
        return names

    def _bind(self, names: _Names, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            same = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
            values = value.elts if same and isinstance(value, ast.Tuple | ast.List) else [None] * len(target.elts)
            for each, part in zip(target.elts, values, strict=True):
                self._bind(names, each, part)
        elif isinstance(target, ast.Starred):
            self._bind(names, target.value, None)
        elif isinstance(target, ast.Name):
            scope, owner = self.scope_of(target), self.class_of(target)
            if owner is not None and (scope is None or scope in set(self.above(owner))):
                names.values[None, f"{owner.name}.{target.id}"].append(value)
            else:
                names.values[None if self._is_global(scope, target.id) else scope, target.id].append(value)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            owner = self.class_of(target) if target.value.id == "self" else None
            names.values[None, f"{owner.name if owner else target.value.id}.{target.attr}"].append(value)
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            key = target.slice.value if isinstance(target.slice, ast.Constant) else None
            names.values[None, f"{target.value.id}[{key!r}]"].append(value)

    def _is_global(self, scope: Scope, name: str) -> bool:
        return scope is not None and any(isinstance(n, ast.Global) and name in n.names for n in ast.walk(scope))

    def assigned(self, node: ast.Name) -> list[ast.expr | None] | None:
        """Return what a name is given in the nearest scope that binds it; None where it is bound nowhere."""
        scope = self.scope_of(node)
        while True:
            if found := self.names.values.get((scope, node.id)):
                return found
            if isinstance(scope, Function | ast.Lambda) and node.id in parameter_names(scope):
                return None
            if scope is None:
                return None
            scope = self.scope_of(scope)

    def qualified(self, node: ast.AST, depth: int = 0) -> str:
        """Return the dotted name by imports and aliases, e.g. `torch.load`; builtins as they are; empty for others."""
        if isinstance(node, ast.Attribute):
            base = self.qualified(node.value, depth)
            return f"{base}.{node.attr}" if base else ""
        if not isinstance(node, ast.Name):
            return ""
        found = self.assigned(node)
        if found is not None and depth < 5:
            last = found[-1]
            return self.qualified(last, depth + 1) if isinstance(last, ast.Name | ast.Attribute) else ""
        if node.id in self.names.imports:
            return self.names.imports[node.id]
        if node.id in self.functions or node.id in self.classes:
            return ""
        if hasattr(builtins, node.id) or node.id == "get_ipython":
            return node.id
        return f"{self.names.stars[-1]}.{node.id}" if self.names.stars and self._unbound(node) else ""

    def _unbound(self, node: ast.Name) -> bool:
        scope = self.scope_of(node)
        return not (isinstance(scope, Function | ast.Lambda) and node.id in parameter_names(scope))

    def spread(self, node: ast.expr) -> dict[str, ast.expr]:
        """Return the entries of a dict that is written out, or of a name that is one; empty where it is not."""
        if isinstance(node, ast.Name) and (found := self.assigned(node)) and len(found) == 1 and found[0] is not None:
            node = found[0]
        if isinstance(node, ast.Dict):
            return {
                key.value: value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
        if isinstance(node, ast.Call) and self.qualified(node.func) == "dict":
            return {each.arg: each.value for each in node.keywords if each.arg}
        return {}

    @cached_property
    def callers(self) -> dict[str, list[ast.Call]]:
        """Calls by the last part of the name that is called: `f(...)`, `m.f(...)`, and a class for its `__init__`."""
        found: dict[str, list[ast.Call]] = defaultdict(list)
        for node in self.nodes:
            if isinstance(node, ast.Call):
                found[last_name(node.func)].append(node)
        return found


def parameter_names(function: Function | ast.Lambda) -> list[str]:
    """Return the names of a function's parameters, those with a star included."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [each.arg for each in [*named, *filter(None, (given.vararg, given.kwarg))]]


def last_name(node: ast.AST) -> str:
    """Return the last part of a dotted name: `f` of `f`, `m.f` and `a().f`; empty for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
