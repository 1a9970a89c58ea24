"""Rules on the submission: where its rows come from, and when its file is first written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from cassava_kit.kaggle.examine.finding import Finding, found_at, found_in, note_of
from cassava_kit.kaggle.examine.program import Function, last_name
from cassava_kit.kaggle.examine.reading import Call, Reading

ROWS, LATE = "rows of the submission", "submission written only at the end"
_SAMPLE = re.compile(r"sample_?submission\w*\.csv$", re.IGNORECASE)
_SUBMISSION = re.compile(r"(^|/)submission\.csv$")
READERS = frozenset({"read_csv", "read_table", "scan_csv"})
# What may be done with the sample submission without taking its rows.
LOOKS = frozenset({"columns", "head", "tail", "shape", "info", "dtypes", "describe", "dtype", "nunique", "sample"})
LOOKED_AT_BY = frozenset({"print", "display", "len", "list", "type"})
SELECTS = frozenset({"head", "sample", "nlargest"})
MOST_CALLS = 5  # functions in functions
MOST_PARTS = 100  # more rows than folds, classes, views or channels
ARRAYS = frozenset(f"numpy.{name}" for name in ("zeros", "ones", "empty", "full", "arange"))
_ADVICE = "make the rows from the files in the folder of test images, which Kaggle replaces when it scores"


def row_findings(reading: Reading) -> Iterator[Finding]:
    """Yield rows that come from the sample submission, or from a constant."""
    writes = submission_writes(reading)
    for call in reading.calls:
        if last_name(call.node.func) in READERS and _reads_sample(reading, call) and (use := _row_use(reading, call)):
            note = note_of(reading, call.node) or ("" if writes else "no cell writes submission.csv")
            message = f"the rows come from the sample submission ({use}), whose public copy holds one row; {_ADVICE}"
            yield found_in(reading.cell_of[call.node], call.node.lineno, ROWS, message, note=note)
    if not writes:
        return
    yield from _constant_rows(reading, writes)


def submission_writes(reading: Reading) -> list[Call]:
    """Return the calls that write `submission.csv`, in the order of the source."""
    return [call for call in reading.calls if _writes_submission(reading, call)]


def _writes_submission(reading: Reading, call: Call) -> bool:
    name = last_name(call.node.func)
    if name in ("to_csv", "write_csv", "savetxt"):
        where = call.argument("path_or_buf", 0) or call.argument("fname", 0) or call.argument("file", 0)
    elif call.name == "open":
        mode = reading.evaluator.one(call.argument("mode", 1))
        where = call.argument("file", 0) if isinstance(mode, str) and set(mode) & set("wax") else None
    elif name in ("write_text", "open") and isinstance(call.node.func, ast.Attribute):
        where = call.node.func.value
    elif call.name in ("shutil.copy", "shutil.copyfile", "shutil.move", "os.rename"):
        where = call.argument("dst", 1)
    else:
        return False
    texts = [value.data for value in reading.evaluator.known(where)]
    return any(isinstance(text, str) and _SUBMISSION.search(text) for text in texts)


def _reads_sample(reading: Reading, call: Call) -> bool:
    where = call.argument("filepath_or_buffer", 0)
    texts = [value.data for value in reading.evaluator.known(where)]
    return any(isinstance(text, str) and _SAMPLE.search(text) for text in texts)


def _row_use(reading: Reading, call: Call) -> str:
    """Return how the rows of the frame that a call reads are used; empty where only its shape or columns are."""
    parent = reading.parents[call.node]
    if isinstance(parent, ast.Attribute):
        return "" if parent.attr in LOOKS else f".{parent.attr}"
    if isinstance(parent, ast.Subscript):
        return "its ids"
    if isinstance(parent, ast.Call):
        return "" if last_name(parent.func) in LOOKED_AT_BY else f"{ast.unparse(parent.func)[:40]}()"
    if isinstance(parent, ast.Expr):
        return ""
    targets = parent.targets if isinstance(parent, ast.Assign) else []
    names = {name for target in targets if (name := _target_name(target))}
    scope = reading.scope_of(call.node)
    if isinstance(parent, ast.Return):
        return "returned"
    uses = (_use_of(reading, node) for node in reading.nodes if _reads_name(node, names, reading, scope))
    return next(filter(None, uses), "")


def _target_name(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _reads_name(node: ast.AST, names: set[str], reading: Reading, scope: ast.AST | None) -> bool:
    if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
        return False
    if _target_name(node) not in names or reading.runs(node) == "never":
        return False
    return scope is None or reading.scope_of(node) is scope


def _use_of(reading: Reading, node: ast.AST) -> str:
    """Return how a frame's rows are used at one place; empty where they are only looked at or checked."""
    parent = reading.parents[node]
    if any(isinstance(each, ast.Assert) for each in reading.above(node)) or isinstance(parent, ast.Expr):
        return ""
    if isinstance(parent, ast.Attribute):
        if parent.attr in LOOKS or isinstance(reading.parents[parent], ast.Expr):
            return ""
        return f".{parent.attr}"
    if isinstance(parent, ast.Call):
        name = last_name(parent.func)
        return "" if name in LOOKED_AT_BY else f"{name}()"
    if isinstance(parent, ast.Subscript):
        stored = isinstance(parent.ctx, ast.Store)
        return "a column is set in it" if stored else ast.unparse(parent)[:40]
    if isinstance(parent, ast.For | ast.comprehension | ast.Return):
        return "its rows one by one" if not isinstance(parent, ast.Return) else "returned"
    if isinstance(parent, ast.Assign):
        return "handed on"
    return ""


def _constant_rows(reading: Reading, writes: list[Call]) -> Iterator[Finding]:
    """Yield frames of constant rows and constant parts of the test rows, where they reach the submission."""
    reach = _feeding_names(reading, writes)
    for call in reading.calls:
        statement = next((each for each in reading.above(call.node) if isinstance(each, ast.stmt)), None)
        names = _bound_by(statement) | ({"submission"} if any(call.node is each.node for each in writes) else set())
        feeds = bool(names & reach) or any(_inside(reading, call.node, each.node) for each in writes)
        if not feeds:
            continue
        if said := _constant_part(reading, call):
            yield found_at(reading, call.node, ROWS, f"{said}, whatever is in the folder; {_ADVICE}")
    for node in reading.nodes:
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and reading.runs(node) != "never":
            statement = next((each for each in reading.above(node) if isinstance(each, ast.stmt)), None)
            stop = reading.evaluator.one(node.slice.upper) if node.slice.upper is not None else None
            first = node.slice.lower is None and isinstance(stop, int) and stop > 0
            if first and _bound_by(statement) & reach and _is_test_rows(reading, node.value):
                yield found_at(
                    reading,
                    node,
                    ROWS,
                    f"only the first {stop} test rows are taken, whatever is in the folder; {_ADVICE}",
                )


def _inside(reading: Reading, node: ast.AST, outer: ast.AST) -> bool:
    return node is outer or any(each is outer for each in reading.above(node))


def _constant_part(reading: Reading, call: Call) -> str:
    """Return what a call makes of constant size, in words; empty for other calls."""
    name = last_name(call.node.func)
    if call.name in ("pandas.DataFrame", "polars.DataFrame") and call.args:
        table = reading.evaluator.one(call.args[0])
        if isinstance(call.args[0], ast.Dict) and isinstance(table, dict):
            lists = [each.data for each in table.values()]
            if lists and all(isinstance(each, list | tuple) and each and _all_known(each) for each in lists):
                return f"the frame has {len(lists[0])} constant rows"
    if call.name in ARRAYS and call.args:
        shape = reading.evaluator.one(call.args[0])
        first = shape[0] if isinstance(shape, tuple | list) and shape else shape
        if isinstance(first, int) and not isinstance(first, bool) and first > MOST_PARTS:
            return f"there is room for {first} rows"
    if call.name == "range" and len(call.args) == 1:
        count = reading.evaluator.one(call.args[0])
        if isinstance(count, int) and count > MOST_PARTS:
            return f"{count} rows are counted"
    if name in READERS and (nrows := call.argument("nrows")) is not None and _is_test_rows(reading, call.node):
        count = reading.evaluator.one(nrows)
        return f"only {count} test rows are read" if isinstance(count, int) else ""
    if name in SELECTS and isinstance(call.node.func, ast.Attribute) and _is_test_rows(reading, call.node.func.value):
        count = reading.evaluator.one(call.argument("n", 0))
        return f"only {count} test rows are taken" if isinstance(count, int) else ""
    return ""


def _all_known(values: list[object] | tuple[object, ...]) -> bool:
    return all(isinstance(each, str | int | float) for each in values)


def _is_test_rows(reading: Reading, node: ast.AST, depth: int = 0) -> bool:
    """Return whether an expression lists the test images or reads a table of them."""
    for each in ast.walk(node):
        if isinstance(each, ast.Call) and last_name(each.func) in (*READERS, "listdir", "glob", "iterdir", "rglob"):
            texts = [
                v.data for part in ast.walk(each) if isinstance(part, ast.expr) for v in reading.evaluator.known(part)
            ]
            if any(isinstance(text, str) and ("test" in text.lower() or _SAMPLE.search(text)) for text in texts):
                return True
        if isinstance(each, ast.Name) and depth < 3:
            given = [value for value in reading.assigned(each) or [] if value is not None and value is not node]
            if any(_is_test_rows(reading, value, depth + 1) for value in given):
                return True
    return False


def _bound_by(statement: ast.AST | None) -> set[str]:
    """Return the names that a statement gives a value, or whose method it calls (`rows.append(x)`)."""
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return {_root(each) for target in targets for each in _parts(target)}
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return {_root(statement.value.func)} if isinstance(statement.value.func, ast.Attribute) else set()
    if isinstance(statement, ast.For):
        return {each.id for each in ast.walk(statement) if isinstance(each, ast.Name)}
    return set()


def _parts(target: ast.expr) -> list[ast.expr]:
    return list(target.elts) if isinstance(target, ast.Tuple | ast.List) else [target]


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _feeding_names(reading: Reading, writes: list[Call]) -> set[str]:
    """Return the names from which the written frame is made, step by step back from the write."""
    statements = [node for node in reading.nodes if isinstance(node, ast.stmt) and not isinstance(node, ast.For)]
    made_of: dict[str, set[str]] = {}
    for statement in statements:
        used = {
            each.id for each in ast.walk(statement) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)
        }
        for name in _bound_by(statement):
            made_of.setdefault(name, set()).update(used)
    waiting = [name.id for call in writes for name in ast.walk(call.node) if isinstance(name, ast.Name)]
    reached = set[str]()
    while waiting:
        name = waiting.pop()
        if name and name not in reached:
            reached.add(name)
            waiting += made_of.get(name, set())
    return reached


def late_findings(reading: Reading, heavy: list[ast.AST]) -> Iterator[Finding]:
    """Yield the first write of `submission.csv` where it comes after what may fail or be stopped, `heavy`."""
    writes = [call for call in submission_writes(reading) if reading.runs(call.node) == "yes"]
    if not writes or not heavy:
        return
    order = {node: place for place, node in enumerate(reading.nodes)}
    first = min(writes, key=lambda call: _when(reading, call.node, order))
    earliest = min(_when(reading, node, order) for node in heavy)
    if earliest < _when(reading, first.node, order):
        message = (
            "nothing is left to score when the run is stopped or a cell fails before this line; write a first "
            "submission.csv (the most frequent class for each test image) before the network runs"
        )
        yield found_at(reading, first.node, LATE, message)


def _when(reading: Reading, node: ast.AST, order: dict[ast.AST, int], depth: int = 0) -> int:
    """Return the place in the source at which a node first runs: its own, or that of the first call of its function."""
    around = [each for each in reading.above(node) if isinstance(each, Function | ast.ClassDef)]
    if not around or depth > MOST_CALLS:
        return order[node]
    outer = around[-1]
    calls = [call for call in reading.callers.get(outer.name, []) if not _inside(reading, call, outer)]
    return min((_when(reading, call, order, depth + 1) for call in calls), default=order[node])
