"""Generate the notebooks of `kernels/` and their metadata from percent sources: `render`, `build_kernels`.

A line `# include: settings` in a source is replaced by what the notebook must know before it can import the kit (names
of the competition, what to install, the builds it was made for), and its cell is folded; `# include: <file>` is
replaced by a file of `kernels/`. `{title}` and `{slug}` in text are the competition's. The same sources give the same
bytes.

A new kernel is a folder of `kernels/` with a source in this form, and a line in `KERNELS`; `kernels/README.md` has the
steps.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cassava_kit.competition import CASSAVA, Competition, current, facts
from cassava_kit.errors import UserError, closest
from cassava_kit.files import sha256_file, write_text
from cassava_kit.kaggle.pack.config import COMMAND_LINE, KaggleConfig, read_config

KERNEL_METADATA = "kernel-metadata.json"
# A session ends after twelve hours and may then lose its output: a kernel that trains ends itself before.
OWN_LIMIT_SECONDS = int(11.5 * 3600)
# Run by a notebook from the kit's dataset, once its hash is the one in the notebook.
BOOTSTRAP_FILE = "bootstrap.py"
# A cell that nobody reads is folded: on Kaggle, in JupyterLab, and in Jupyter Book and the kit's own pages.
FOLDED = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
INCLUDE = re.compile(r"^# include: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """One folder of `kernels/`.

    `install`: the packages that it installs.
    `leaves`: a pattern of the output files, of which a whole run leaves at least one.
    `weights`, `gpu`: whether it needs the dataset of weights, and a GPU.
    `own_output`: whether the output of its latest session is attached, to go on from. Before there is one, Kaggle warns
    that it cannot be added, and runs the kernel nevertheless.
    """

    name: str
    install: tuple[str, ...]
    leaves: str
    weights: bool = False
    gpu: bool = True
    own_output: bool = False


SUBMISSION_KERNEL = Kernel("ensemble-submission", ("cassava-kit", "ttach"), "submission.csv", weights=True)
KERNELS = (
    SUBMISSION_KERNEL,
    Kernel("train-folds", ("cassava-kit", *COMMAND_LINE, "lightning"), "runs/*/fold*/oof.csv", own_output=True),
    Kernel(
        "pretrain-ssl",
        ("cassava-kit", *COMMAND_LINE, "lightning", "lightly"),
        "pretrain-*/backbone.safetensors",
        own_output=True,
    ),
    Kernel("eda", ("cassava-kit",), "classes.png", gpu=False),
    Kernel("gpu-check", ("cassava-kit", *COMMAND_LINE, "lightning", "lightly", "ttach"), "gpu.json"),
)
KERNEL_NAMES = tuple(kernel.name for kernel in KERNELS)


@dataclass(frozen=True)
class Changes:
    """What one push changes in a kernel: values of its parameters by name, and what is attached besides.

    `attach` names datasets by owner/slug, and kernels of the kit, whose latest output is attached, by name.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    attach: tuple[str, ...] = ()


def find_kernel(name: str) -> Kernel:
    """Return the kernel of that name; UserError for an unknown one."""
    found = next((kernel for kernel in KERNELS if kernel.name == name), None)
    if found is None:
        raise UserError(f"no kernel {name!r}{closest(name, KERNEL_NAMES)}; kernels are {', '.join(KERNEL_NAMES)}")
    return found


def parse_changes(parameters: Sequence[str], attach: Sequence[str]) -> Changes:
    """Parse `NAME=VALUE` arguments, VALUE a Python literal or else text, and what to attach; UserError otherwise."""
    values: dict[str, Any] = {}
    for text in parameters:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--param takes NAME=VALUE, e.g. RECIPE=resnet50 or FOLDS=[0,1], got {text!r}")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    for source in attach:
        if source not in KERNEL_NAMES and not re.fullmatch(r"[\w-]+/[\w-]+", source):
            raise UserError(
                f"--attach takes a dataset's owner/slug, or {', '.join(KERNEL_NAMES)} for its output, got {source!r}"
            )
    return Changes(values, tuple(attach))


def kernel_parameters(kernel: Kernel, root: Path, changes: Changes | None = None) -> dict[str, Any]:
    """Return the parameters of a kernel, those of its source's first code cell, with some changed.

    Raises:
        UserError: a change names none of them.
    """
    source = root / "kernels" / kernel.name / f"{kernel.name}.py"
    given = changes.parameters if changes else {}
    values: dict[str, Any] = {}
    exec(_assign(_first_cell(_notebook(source)).source, given, kernel.name), values)
    return {name: value for name, value in values.items() if name.isupper()}


def notebook_settings(kernel: Kernel, competition: Competition, builds: Mapping[str, str]) -> dict[str, Any]:
    """Return what the notebook must know before it can import the kit; `builds`: build id by manifest."""
    from cassava_kit.data.listing import IMAGE_SUFFIXES

    return {
        "competition": competition.slug,
        "train_files": competition.train_files,
        "test_files": competition.test_files,
        "test_images": competition.test_images,
        "test_table": competition.test_table,
        "id_columns": [competition.id_column, competition.answer_id],
        "columns": competition.submission_columns,
        "answer": competition.unknown_answer,
        "ids_have_suffix": competition.answers_have_suffix,
        "ids_have_folder": competition.ids_have_folder,
        "suffixes": list(IMAGE_SUFFIXES),
        "install": list(kernel.install),
        "builds": dict(builds),
        "time_limit": competition.submission_seconds if kernel.weights else OWN_LIMIT_SECONDS,
        "facts": facts(replace(competition, test_share=0.0) if kernel.weights else competition),
    }


def kernel_metadata(kernel: Kernel, config: KaggleConfig, competition: Competition) -> dict[str, Any]:
    """Return `kernel-metadata.json`: private, two T4s, and internet off, which Kaggle turns on by default."""
    own = [config.kernel_id(kernel.name)] if kernel.own_output else []
    return {
        "id": config.kernel_id(kernel.name),
        "title": config.kernel_title(kernel.name),
        "code_file": f"{kernel.name}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": kernel.gpu,
        "enable_tpu": False,
        "enable_internet": False,
        **({"machine_shape": "NvidiaTeslaT4"} if kernel.gpu else {}),
        "dataset_sources": [config.kit_dataset, *([config.weights_dataset] if kernel.weights else [])],
        "competition_sources": [competition.slug],
        "kernel_sources": own,
        "model_sources": [],
    }


def notebook_text(source: Path, values: Mapping[str, Any], parameters: Mapping[str, Any] | None = None) -> str:
    """Return the notebook of a percent source as JSON, with fixed cell ids: jupytext draws new ones on every build.

    `parameters` replace values that the first code cell assigns.
    """
    import nbformat

    notebook = _notebook(source)
    for number, cell in enumerate(notebook.cells):
        folded = FOLDED if "# include: settings" in cell.source else {}
        cell.source = _fill(cell, source.parent, values)
        cell.id, cell.metadata = f"{source.stem}-{number:02d}", nbformat.from_dict(folded)
    if parameters:
        first = _first_cell(notebook)
        first.source = _assign(first.source, parameters, source.stem)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _notebook(source: Path) -> Any:
    """Return the notebook of a percent source as jupytext reads it, includes and all."""
    import jupytext

    return jupytext.reads(_source(source), fmt="py:percent")


def _first_cell(notebook: Any) -> Any:
    """Return the first code cell, which holds the parameters."""
    return next(cell for cell in notebook.cells if cell.cell_type == "code")


def _assign(cell: str, parameters: Mapping[str, Any], kernel: str) -> str:
    """Return the parameters' cell with other values after its own; UserError for a name that it does not assign."""
    assigned = [node for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Name)]
    known = sorted({node.id for node in assigned if isinstance(node.ctx, ast.Store)})
    if unknown := [name for name in parameters if name not in known]:
        raise UserError(f"the kernel {kernel} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    return "\n".join([cell, *(f"{name} = {value!r}" for name, value in parameters.items())])


def with_parameters(notebook: str, parameters: Mapping[str, Any], kernel: str) -> str:
    """Return a notebook's text with other values of its parameters, after those that it was made with.

    Raises:
        UserError: its first code cell assigns no such name.
    """
    content = json.loads(notebook)
    first = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    first["source"] = _assign("".join(first["source"]), parameters, kernel)
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _fill(cell: Any, folder: Path, values: Mapping[str, Any]) -> str:
    """Return a cell's source with its includes, or a text's with the competition's names."""
    if cell.cell_type != "code":
        text = str(cell.source).replace("{title}", str(values["facts"]["title"]))
        return text.replace("{slug}", str(values["competition"]))

    def included(match: re.Match[str]) -> str:
        if match[1] != "settings":
            return _source(folder / match[1]).strip()
        lines = ",\n".join(f"    {json.dumps(key)}: {value!r}" for key, value in values.items())
        return f"SETTINGS = {{\n{lines},\n}}"

    return INCLUDE.sub(included, str(cell.source))


def _source(path: Path) -> str:
    return re.sub(r"\A# ruff:.*\n", "", path.read_text(encoding="utf-8"))


def render(
    kernel: Kernel,
    root: Path,
    *,
    owner: str | None = None,
    builds: Mapping[str, str] | None = None,
    changes: Changes | None = None,
    competition: Competition | None = None,
) -> dict[str, str]:
    """Return file name -> text of a kernel's generated files; `builds` pins the notebook to the datasets' build ids."""
    competition = competition or current()
    source, changes = root / "kernels" / kernel.name / f"{kernel.name}.py", changes or Changes()
    values = notebook_settings(kernel, competition, builds or {})
    values["bootstrap"] = sha256_file(root / "kernels" / BOOTSTRAP_FILE)
    config = read_config(root, owner=owner, competition=competition)
    described = kernel_metadata(kernel, config, competition)
    described["dataset_sources"] += [source for source in changes.attach if source not in KERNEL_NAMES]
    described["kernel_sources"] += [config.kernel_id(name) for name in changes.attach if name in KERNEL_NAMES]
    return {
        f"{kernel.name}.ipynb": notebook_text(source, values, changes.parameters),
        KERNEL_METADATA: json.dumps(described, indent=2) + "\n",
    }


def build_kernels(root: str | Path, check: bool = False) -> list[Path]:
    """Generate the files of every kernel and return those that were out of date; with `check` write nothing."""
    root, stale = Path(root), []
    for kernel in KERNELS:
        for name, text in render(kernel, root, competition=CASSAVA).items():
            path = root / "kernels" / kernel.name / name
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(path)
                if not check:
                    write_text(path, text)
    return stale
