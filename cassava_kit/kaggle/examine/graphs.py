"""Rule on CUDA graphs: outputs of a compiled network that its next pass overwrites."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from cassava_kit.kaggle.examine.finding import Finding, found_at, place_of
from cassava_kit.kaggle.examine.program import Function, last_name
from cassava_kit.kaggle.examine.reading import Call, Reading

COMPILED = "output kept under CUDA graphs"
GRAPH_MODES = frozenset({"reduce-overhead", "max-autotune"})
# Methods and functions whose result shares the memory of what they are given.
SAME_MEMORY = frozenset(
    [
        "detach",
        "view",
        "view_as",
        "reshape",
        "squeeze",
        "unsqueeze",
        "flatten",
        "t",
        "transpose",
        "permute",
        "narrow",
        "expand",
        "data",
        "float",
        "logits",
        "get",
        "contiguous",
        "to",
        "type_as",
        "requires_grad_",
        "chunk",
        "split",
        "unbind",
    ]
)
STORES = frozenset({"append", "extend", "add", "insert", "put", "update"})


def graph_findings(reading: Reading) -> Iterator[Finding]:
    """Yield outputs of a network compiled with CUDA graphs that the next pass overwrites."""
    for call in reading.calls:
        if call.name != "torch.compile" or not _uses_graphs(reading, call):
            continue
        names = _compiled_names(reading, call)
        for node in reading.nodes:
            if isinstance(node, ast.Call) and last_name(node.func) in names and reading.runs(node) != "never":
                kept = _where_kept(reading, node, names)
                if kept is not None:
                    yield found_at(
                        reading,
                        kept,
                        COMPILED,
                        f"the next pass of the network compiled in {place_of(reading, call.node)} overwrites it; "
                        "keep a copy of it, output.clone() or output.float().cpu()",
                    )


def _uses_graphs(reading: Reading, call: Call) -> bool:
    modes = {value.data for value in reading.evaluator.known(call.argument("mode")) if isinstance(value.data, str)}
    options = call.argument("options")
    graphs = isinstance(options, ast.Dict) and any(
        isinstance(key, ast.Constant) and key.value == "triton.cudagraphs" and reading.evaluator.one(value) is True
        for key, value in zip(options.keys, options.values, strict=True)
    )
    return bool(modes & GRAPH_MODES) or graphs


def _compiled_names(reading: Reading, call: Call) -> set[str]:
    """Return the names under which a compiled network is called."""
    names = {
        name.rpartition(".")[2]
        for (_, name), values in reading.names.values.items()
        if any(value is not None and any(each is call.node for each in ast.walk(value)) for value in values)
    }
    for each in reading.above(call.node):
        if isinstance(each, Function | ast.ClassDef) and any(
            call.node is d or call.node in ast.walk(d) for d in each.decorator_list
        ):
            names.add(each.name)
        if isinstance(each, ast.Return) and (function := reading.scope_of(call.node)):
            made_by = getattr(function, "name", "")
            names |= {
                name.rpartition(".")[2]
                for (_, name), values in reading.names.values.items()
                if any(isinstance(value, ast.Call) and last_name(value.func) == made_by for value in values)
            }
    # A list of them, gone through one by one.
    lists = set(names)
    for node in reading.nodes:
        if (
            isinstance(node, ast.For | ast.comprehension)
            and isinstance(node.target, ast.Name)
            and last_name(node.iter) in lists
        ):
            names.add(node.target.id)
        if isinstance(node, ast.Call) and last_name(node.func) == "append" and call.node in ast.walk(node):
            assert isinstance(node.func, ast.Attribute)
            lists.add(last_name(node.func.value))
    # A parameter of a function that gets it.
    for function in (each for several in reading.functions.values() for each in several):
        for made in reading.callers.get(function.name, []):
            for place, argument in enumerate(made.args[: len(function.args.args)]):
                if isinstance(argument, ast.Name) and argument.id in names:
                    names.add(function.args.args[place].arg)
    return names


def _where_kept(reading: Reading, node: ast.Call, names: set[str]) -> ast.AST | None:
    """Return where a raw output is stored beyond the next pass; None where it is copied or used up first."""
    below, above = node, reading.parents[node]
    outer: ast.AST = node
    while _shares_memory(above, below):
        outer, below, above = above, above, reading.parents[above]  # type: ignore[assignment]
    if isinstance(above, ast.Call) and below is not above.func:
        return outer if last_name(above.func) in STORES else None
    if isinstance(above, ast.ListComp | ast.SetComp | ast.DictComp):
        return outer
    if isinstance(above, ast.Assign):
        return _kept_name(reading, above, names)
    return None


def _shares_memory(above: ast.AST, below: ast.AST) -> bool:
    if isinstance(above, ast.Attribute):
        return above.attr in SAME_MEMORY
    if isinstance(above, ast.Call):
        return above.func is below and isinstance(below, ast.Attribute) and below.attr in SAME_MEMORY
    return isinstance(above, ast.Subscript) and above.value is below


def _kept_name(reading: Reading, statement: ast.Assign, names: set[str]) -> ast.AST | None:
    """Return where the name of an output is stored, or used after another pass of the same network."""
    scope = reading.scope_of(statement)
    target = statement.targets[0]
    if isinstance(target, ast.Subscript):
        return None if _is_copied_into(reading, target) else statement
    if not isinstance(target, ast.Name):
        return None
    order = {node: place for place, node in enumerate(reading.nodes)}
    end = max(order[node] for node in ast.walk(statement) if node in order)
    later = [node for node in reading.nodes[end + 1 :] if reading.scope_of(node) is scope]
    passes = 0
    for node in later:
        if isinstance(node, ast.Call) and last_name(node.func) in names:
            passes += 1
        if isinstance(node, ast.Name) and node.id == target.id:
            if isinstance(node.ctx, ast.Store):
                value = reading.parents[node]
                if isinstance(value, ast.Assign) and target.id in {
                    n.id for n in ast.walk(value.value) if isinstance(n, ast.Name)
                }:
                    if not _raw(value.value, target.id):
                        return None
                    continue
                return None
            parent, below = reading.parents[node], node
            outer: ast.AST = node
            while _shares_memory(parent, below):
                outer, below, parent = parent, parent, reading.parents[parent]  # type: ignore[assignment]
            if isinstance(parent, ast.Call) and below is not parent.func and last_name(parent.func) in STORES:
                return outer
            if (
                isinstance(parent, ast.Assign)
                and isinstance(parent.targets[0], ast.Subscript)
                and parent.value is below
            ):
                return None if _is_copied_into(reading, parent.targets[0]) else outer
            if passes:
                return node
    return None


def _raw(value: ast.expr, name: str) -> bool:
    """Return whether an expression is a view of the name: `out = out.detach()`."""
    while isinstance(value, ast.Call | ast.Attribute | ast.Subscript):
        if isinstance(value, ast.Call):
            if not (isinstance(value.func, ast.Attribute) and value.func.attr in SAME_MEMORY):
                return False
            value = value.func.value
        else:
            value = value.value
    return isinstance(value, ast.Name) and value.id == name


def _is_copied_into(reading: Reading, target: ast.Subscript) -> bool:
    """Return whether storing into a subscript copies: an array or tensor does, a list or dict keeps the object."""
    given = reading.assigned(target.value) if isinstance(target.value, ast.Name) else None
    return not any(isinstance(value, ast.List | ast.Dict | ast.ListComp) for value in given or [])
