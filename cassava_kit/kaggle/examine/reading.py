"""One reading of a notebook for the rules: its calls, what of it runs, and the values of its expressions: `Reading`."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from cassava_kit.kaggle.examine.cells import NotebookSource
from cassava_kit.kaggle.examine.program import Function, Program
from cassava_kit.kaggle.examine.values import Evaluator

Reach = Literal["yes", "never", "uncalled"]


@dataclass(frozen=True)
class Call:
    """One call: its qualified name (empty where its root is not imported), positional and named arguments."""

    node: ast.Call
    name: str
    args: tuple[ast.expr, ...]
    keywords: dict[str, ast.expr]
    # `**cfg` of a name that could not be followed: further arguments may be there.
    open_ended: bool = False

    def argument(self, name: str, place: int | None = None) -> ast.expr | None:
        """Return an argument by name, or by place; None where it is not given."""
        if name in self.keywords:
            return self.keywords[name]
        if place is not None and place < len(self.args) and not isinstance(self.args[place], ast.Starred):
            return self.args[place]
        return None


class Reading(Program):
    """A program whose expressions are evaluated, and whose dead code is known."""

    def __init__(self, source: NotebookSource) -> None:
        super().__init__(source)
        self.evaluator = Evaluator(self)

    @cached_property
    def calls(self) -> list[Call]:
        """Every call that may run, in the order of the source; `functools.partial(f, ...)` is a call of f."""
        made = []
        for node in self.nodes:
            if isinstance(node, ast.Call) and self.runs(node) != "never":
                made.append(self._call(node))
        return made

    def _call(self, node: ast.Call) -> Call:
        name, args = self.qualified(node.func), list(node.args)
        if name in ("functools.partial", "partial") and args:
            name, args = self.qualified(args[0]), args[1:]
        keywords = {each.arg: each.value for each in node.keywords if each.arg}
        spread = [each.value for each in node.keywords if each.arg is None]
        for value in spread:
            keywords = self.spread(value) | keywords
        unfollowed = any(not self.spread(value) for value in spread)
        return Call(node, name, tuple(args), keywords, unfollowed or any(isinstance(a, ast.Starred) for a in args))

    @cached_property
    def used_names(self) -> frozenset[str]:
        """The names that code uses which runs; a function is reached where its name is used by what is reached."""
        bodies: dict[str, list[ast.AST]] = defaultdict(list)
        for node in self.nodes:
            if isinstance(node, Function | ast.ClassDef) and not self._inside_class(node):
                bodies[node.name].append(node)
        used, waiting = set[str](), list(self.cells)
        queue: list[str] = []
        for cell in waiting:
            assert cell.tree is not None
            queue += self._uses(cell.tree, top=True)
        while queue:
            name = queue.pop()
            if name in used:
                continue
            used.add(name)
            for body in bodies.get(name, []):
                queue += self._uses(body, top=False)
        return frozenset(used)

    def _inside_class(self, node: ast.AST) -> bool:
        return isinstance(node, Function) and isinstance(self.parents.get(node), ast.ClassDef)

    def _uses(self, tree: ast.AST, *, top: bool) -> list[str]:
        """Return the names used in a tree, without those in the bodies of other functions and in dead branches."""
        found, waiting = list[str](), list(ast.iter_child_nodes(tree))
        while waiting:
            node = waiting.pop()
            if isinstance(node, Function | ast.ClassDef) and not self._inside_class(node):
                waiting += node.decorator_list
                if node.decorator_list:
                    found.append(node.name)
                continue
            if isinstance(node, ast.If):
                known = self.evaluator.truth(node.test)
                waiting += [node.test, *(node.body if known is not False else [])]
                waiting += node.orelse if known is not True else []
                continue
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found.append(node.id)
            elif isinstance(node, ast.Attribute):
                found.append(node.attr)
            waiting += ast.iter_child_nodes(node)
        return found

    def runs(self, node: ast.AST) -> Reach:
        """Return `never` in a branch whose condition is constant, `uncalled` in a function that nothing uses, `yes`."""
        below: ast.AST = node
        verdict: Reach = "yes"
        for each in self.above(node):
            if isinstance(each, ast.If | ast.IfExp) and below is not each.test:
                known = self.evaluator.truth(each.test)
                body = each.body if isinstance(each.body, list) else [each.body]
                if (known is False and below in body) or (known is True and below not in body):
                    return "never"
            if isinstance(each, Function | ast.ClassDef) and not self._inside_class(each):
                nested = below in each.decorator_list
                if not nested and not each.decorator_list and each.name not in self.used_names:
                    verdict = "uncalled"
            below = each
        return verdict
