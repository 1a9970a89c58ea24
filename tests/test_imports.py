"""House rules: rooms import to their left only, nothing imports in a circle, and a name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Each room may import the ones to its left; rooms that share an entry do not know each other.
ORDER = (
    "errors | files | settings | competition | models data | evidence | inference | "
    "training kaggle | report | cli | __main__"
)
PLACE = {room: place for place, rooms in enumerate(ORDER.split("|")) for room in rooms.split()}
STRANGERS = {("report", "kaggle")}
Arrows = set[tuple[str, str]]


def read_modules(root: Path) -> dict[str, ast.Module]:
    """The package's modules under `root` by dotted name, without the package's own, e.g. `data.folds`."""
    paths = sorted((root / "cassava_kit").rglob("*.py"))
    named = {".".join(path.relative_to(root / "cassava_kit").with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): ast.parse(path.read_text("utf-8")) for name, path in named.items()}


def find_imports(modules: dict[str, ast.Module]) -> Arrows:
    """(importer, imported), those inside functions and for type checking included."""
    arrows = set()
    for name, tree in modules.items():
        for node in ast.walk(tree):
            taken = []
            if isinstance(node, ast.Import):
                taken = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                taken = [part if part.removeprefix("cassava_kit.") in modules else node.module for part in parts]
            inside = [each.removeprefix("cassava_kit.") for each in taken if each.startswith("cassava_kit.")]
            arrows |= {(name, each) for each in inside if each != name}
    return arrows


def between(arrows: Arrows, depth: int | None) -> Arrows:
    """Arrows between folders: of `depth` parts of the name, or each module's own folder."""
    cut = (lambda name: ".".join(name.split(".")[:depth])) if depth else (lambda name: name.rpartition(".")[0] or name)
    return {(cut(a), cut(b)) for a, b in arrows if cut(a) != cut(b)}


def find_upward(arrows: Arrows) -> list[str]:
    """Arrows between rooms that do not run to the left."""
    rooms = {(a, b): (a.split(".")[0], b.split(".")[0]) for a, b in arrows}
    return sorted(
        f"{a} -> {b}" for (a, b), (x, y) in rooms.items() if x != y and (PLACE[y] >= PLACE[x] or (x, y) in STRANGERS)
    )


def find_circle(arrows: Arrows) -> list[str]:
    """The modules, or folders, of one circle; empty where there is none."""
    graph: dict[str, set[str]] = defaultdict(set)
    for a, b in arrows:
        graph[a].add(b)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def find_twice(modules: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Public top-level names that several modules define."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, tree in modules.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
            else:
                continue
            for each in defined:
                if not each.startswith("_"):
                    places[each].append(name)
    return {name: found for name, found in places.items() if len(found) > 1}


MODULES = read_modules(ROOT)
# The package's face hands names on and every room asks it for the version.
ARROWS = {(a, b) for a, b in find_imports(MODULES) if "__init__" not in (a, b)}


def test_rooms_import_to_their_left_only():
    assert {name.split(".")[0] for name in MODULES} - {"__init__"} == set(PLACE)
    assert find_upward(ARROWS) == []


def test_nothing_imports_in_a_circle():
    assert find_circle(ARROWS) == []
    folders = {(a, b) for a, b in between(ARROWS, None) if "__main__" not in (a, b)}
    assert find_circle(folders) == []


def test_rehearsing_and_sending_do_not_know_each_other():
    pairs = between(ARROWS, 2)
    assert ("kaggle.rehearse", "kaggle.pack") in pairs
    assert not {("kaggle.rehearse", "kaggle.send"), ("kaggle.send", "kaggle.rehearse")} & pairs


def test_rooms_are_few_and_loosely_tied():
    shown = {name.split(".")[0] for name in MODULES if "__" not in name}
    assert len(shown) <= 12
    assert len(between({(a, b) for a, b in ARROWS if a != "__main__"}, 1)) <= 60


def test_a_name_means_one_thing():
    assert find_twice(MODULES) == {}


def test_the_rules_see_what_they_forbid(tmp_path):
    for name, text in {
        "data/a.py": "from cassava_kit.evidence.b import x",
        "evidence/b.py": "def late():\n    from cassava_kit.data import a\n\nX = 1",
        "report/c.py": "import cassava_kit.kaggle.d\nX = 2",
        "kaggle/d.py": "",
    }.items():
        path = tmp_path / "cassava_kit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    modules = read_modules(tmp_path)
    arrows = find_imports(modules)
    assert find_upward(arrows) == ["data.a -> evidence.b", "report.c -> kaggle.d"]
    assert set(find_circle(arrows)) == {"data.a", "evidence.b"}
    assert set(find_circle(between(arrows, None))) == {"data", "evidence"}
    assert find_twice(modules) == {"X": ["evidence.b", "report.c"]}
