"""Rules on a notebook's metadata: `kernel-metadata.json`, or what Kaggle keeps in the notebook itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import find_file
from cassava_kit.kaggle.examine.cells import NotebookSource
from cassava_kit.kaggle.examine.finding import METADATA_CELL, Finding

SETTINGS_RULE = "metadata"
LARGEST_SOURCE = 1_000_000
ATTACHED = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources")
RETIRED = re.compile(r"p100", re.IGNORECASE)


@dataclass(frozen=True)
class RunSettings:
    """What a run of the notebook gets: internet, GPU, attached sources (None: not said), and the text that says so."""

    text: str
    internet: bool | None = None
    gpu: bool | None = None
    shape: str = ""
    sources: tuple[str, ...] | None = None
    competitions: tuple[str, ...] | None = None
    code_file: str | None = None
    of_file: bool = False
    keys: dict[str, str] = field(default_factory=dict)

    def line_of(self, name: str) -> int:
        """Return the line on which a setting is written; 1 where it is not."""
        key = self.keys.get(name, name)
        lines = self.text.splitlines()
        return next((number for number, line in enumerate(lines, start=1) if f'"{key}"' in line), 1)


def read_settings(source: NotebookSource, path: Path | None) -> RunSettings | None:
    """Return the settings of a metadata file, else of the one beside the notebook that names it, else the notebook's.

    Raises:
        FileNotFoundError: There is no file `path`.
        UserError: It is no JSON object.
    """
    beside = source.path.parent / "kernel-metadata.json"
    if path is None and beside.is_file() and _names(beside, source.path.name):
        path = beside
    if path is not None:
        return _of_file(path)
    kaggle = source.metadata.get("kaggle")
    return _of_notebook(source, kaggle) if isinstance(kaggle, dict) else None


def _names(path: Path, notebook: str) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and Path(str(content.get("code_file"))).name == notebook


def _of_file(path: Path) -> RunSettings:
    find_file(path, "metadata", "`kaggle kernels init` writes it; without it leave --kernel-metadata out")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} must be JSON, as `kaggle kernels init` writes it: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a JSON object, as `kaggle kernels init` writes it")
    lists = {name: _texts(content.get(name)) for name in ATTACHED}
    return RunSettings(
        text,
        internet=_truth(content.get("enable_internet", True)),
        gpu=_truth(content.get("enable_gpu", False)),
        shape=str(content.get("machine_shape") or ""),
        sources=tuple(name for names in lists.values() for name in names),
        competitions=lists["competition_sources"],
        code_file=str(content["code_file"]) if "code_file" in content else "",
        of_file=True,
        keys={"internet": "enable_internet", "gpu": "enable_gpu", "shape": "machine_shape"},
    )


def _texts(value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(str(each) for each in given)


def _truth(value: Any) -> bool:
    """Return a setting as the client reads it: `"true"` counts as true."""
    return value.strip().lower() == "true" if isinstance(value, str) else bool(value)


def _of_notebook(source: NotebookSource, kaggle: dict[str, Any]) -> RunSettings:
    listed = kaggle.get("dataSources")
    competitions = None
    if isinstance(listed, list):
        kinds = [str(each.get("sourceType", "")) for each in listed if isinstance(each, dict)]
        competitions = tuple(kind for kind in kinds if kind.lower().startswith("competition"))
    shape = str(kaggle.get("accelerator") or "")
    return RunSettings(
        source.path.read_text(encoding="utf-8"),
        internet=bool(kaggle["isInternetEnabled"]) if "isInternetEnabled" in kaggle else None,
        gpu=bool(kaggle["isGpuEnabled"]) if "isGpuEnabled" in kaggle else None,
        shape=shape,
        competitions=competitions,
        keys={
            "internet": "isInternetEnabled",
            "gpu": "isGpuEnabled",
            "shape": "accelerator",
            "competition_sources": "dataSources",
        },
    )


def setting_findings(
    source: NotebookSource, settings: RunSettings | None, *, submits: bool, trains: bool
) -> Iterator[Finding]:
    """Yield settings that end a submission; `submits`: the notebook writes one, `trains`: it runs a network."""
    if source.size > LARGEST_SOURCE:
        yield _found(
            1, f"{source.path.name} has {source.size:,} bytes, Kaggle takes {LARGEST_SOURCE:,}; clear the kept outputs"
        )
    if settings is None:
        return
    if settings.internet and settings.of_file and f'"{settings.keys["internet"]}"' not in settings.text:
        yield _found(1, 'enable_internet is missing, and is true then; write "enable_internet": false')
    elif settings.internet:
        key = settings.keys["internet"]
        yield _found(settings.line_of("internet"), f"{key} is true; a submission's notebook must have it false")
    yield from _gpu(settings, trains)
    if settings.competitions == () and (submits or settings.of_file):
        key = settings.keys.get("competition_sources", "competition_sources")
        yield _found(settings.line_of("competition_sources"), f"{key} names no competition; attach it")
    if settings.code_file is not None and Path(settings.code_file).name != source.path.name:
        yield _found(
            settings.line_of("code_file"),
            f"code_file is {settings.code_file!r}, the notebook is {source.path.name!r}; write its name",
        )


def _gpu(settings: RunSettings, trains: bool) -> Iterator[Finding]:
    if RETIRED.search(settings.shape):
        yield _found(
            settings.line_of("shape"), f"{settings.shape} is retired; ask for NvidiaTeslaT4, which gives two T4s"
        )
    elif settings.gpu and settings.of_file and not settings.shape:
        yield _found(
            settings.line_of("gpu"),
            'machine_shape is missing, and the P100 is retired; write "machine_shape": "NvidiaTeslaT4"',
        )
    elif settings.gpu is False and trains and settings.of_file:
        yield _found(settings.line_of("gpu"), "enable_gpu is false, and the notebook runs a network; write true")


def _found(line: int, message: str) -> Finding:
    return Finding(METADATA_CELL, line, SETTINGS_RULE, message)
