"""Notebooks and their metadata, generated from percent sources: `python -m cassava_kit.kaggle.kernels [--check]`.

`# include: settings` in a source is replaced by what the kernel must know (the competition's names, what to
install, the builds it was made for), `# include: <file>` by a file of `kernels/`. The same sources give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cassava_kit.competition import CASSAVA, Competition
from cassava_kit.files import write_text
from cassava_kit.kaggle.config import KaggleConfig, read_config

KERNEL_METADATA = "kernel-metadata.json"
# The competition allows nine hours on a GPU; what is left of it is for start-up and for writing the result.
SUBMISSION_SECONDS = int(8.5 * 3600)
# A session ends after twelve hours, and one that is cut off may lose its output.
SESSION_SECONDS = int(11.5 * 3600)


@dataclass(frozen=True)
class Kernel:
    """One folder of `kernels/`: what it installs, what Kaggle must give it, and after how many seconds it stops itself.

    `own_output` attaches what an earlier session of the same kernel left, to go on from it; before there is one, Kaggle
    says that it cannot be added, and runs the kernel all the same.
    """

    name: str
    install: tuple[str, ...]
    weights: bool = False
    gpu: bool = True
    own_output: bool = False
    seconds: int = SUBMISSION_SECONDS


SUBMISSION_KERNEL = Kernel("ensemble-submission", ("cassava-kit", "ttach"), weights=True)
KERNELS = (
    SUBMISSION_KERNEL,
    Kernel("train-folds", ("cassava-kit", "lightning"), own_output=True, seconds=SESSION_SECONDS),
    Kernel("pretrain-ssl", ("cassava-kit", "lightning", "lightly"), own_output=True, seconds=SESSION_SECONDS),
    Kernel("eda", ("cassava-kit",), gpu=False, seconds=SESSION_SECONDS),
)


def settings(kernel: Kernel, competition: Competition, builds: Mapping[str, str]) -> dict[str, Any]:
    """What the generated notebook must know before it can import the kit; `builds` pins manifests to build ids."""
    from cassava_kit.data.table import IMAGE_SUFFIXES

    return {
        "competition": competition.slug,
        "test_images": competition.test_images,
        "sample_submission": competition.sample_submission,
        "train_csv": competition.train_csv,
        "train_images": competition.train_images,
        "columns": [competition.id_column, competition.label_column],
        "majority_label": competition.majority,
        "suffixes": list(IMAGE_SUFFIXES),
        "install": list(kernel.install),
        "builds": dict(builds),
        "time_limit": kernel.seconds,
    }


def metadata(kernel: Kernel, config: KaggleConfig, competition: Competition) -> dict[str, Any]:
    """The `kernel-metadata.json`: private, offline, two T4s; internet is on wherever this does not say otherwise."""
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


def notebook_text(source: Path, values: Mapping[str, Any]) -> str:
    """The notebook of a percent source, with pinned cell ids and metadata: jupytext draws new ids on every build."""
    import jupytext
    import nbformat

    text = _source(source)
    notebook = jupytext.reads(text, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.source = _include(cell.source, source.parent, values)
        cell.id, cell.metadata = f"{source.stem}-{number:02d}", {}
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _include(cell: str, folder: Path, values: Mapping[str, Any]) -> str:
    match = re.fullmatch(r"# include: (\S+)", cell.strip())
    if not match:
        return cell
    if match[1] == "settings":
        lines = ",\n".join(f"    {json.dumps(key)}: {value!r}" for key, value in values.items())
        return f"SETTINGS = {{\n{lines},\n}}"
    return _source(folder / match[1]).strip()


def _source(path: Path) -> str:
    return re.sub(r"\A# ruff:.*\n", "", path.read_text(encoding="utf-8"))


def render(
    kernel: Kernel, root: Path, *, owner: str | None = None, builds: Mapping[str, str] | None = None
) -> dict[str, str]:
    """File name -> text of a kernel's generated files; `builds` pins it to the datasets it was made for."""
    source = root / "kernels" / kernel.name / f"{kernel.name}.py"
    values = settings(kernel, CASSAVA, builds or {})
    described = metadata(kernel, read_config(root, owner=owner), CASSAVA)
    return {
        f"{kernel.name}.ipynb": notebook_text(source, values),
        KERNEL_METADATA: json.dumps(described, indent=2) + "\n",
    }


def build_kernels(root: str | Path, check: bool = False) -> list[Path]:
    """Generate every kernel's files; with `check` write nothing. Returns those that were out of date."""
    root, stale = Path(root), []
    for kernel in KERNELS:
        for name, text in render(kernel, root).items():
            path = root / "kernels" / kernel.name / name
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(path)
                if not check:
                    write_text(path, text)
    return stale


def main() -> int:
    """Entry point: `--check` writes nothing and exits with 1 where a generated file is out of date."""
    parser = argparse.ArgumentParser(prog="python -m cassava_kit.kaggle.kernels", description="Generate the kernels.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 on drift")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: this folder)")
    options = parser.parse_args()
    stale = ", ".join(str(path) for path in build_kernels(options.root, options.check))
    if options.check and stale:
        print(f"out of date: {stale}; run: python -m cassava_kit.kaggle.kernels", file=sys.stderr)
        return 1
    print(f"written: {stale}" if stale else "every kernel is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
