"""Read run folders: configurations, metrics, findings and out-of-fold files by fold; entry point `find_runs`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cassava_kit.errors import UserError
from cassava_kit.evidence.oof import distinct_names
from cassava_kit.evidence.predictions import Predictions, read_predictions
from cassava_kit.files import CONFIG_FILE, DONE_FILE, OOF_FILE, find_folder, read_csv, read_object

FOLD_FOLDER = re.compile(r"fold(\d+)")


@dataclass(frozen=True)
class Run:
    """The content of a run folder by fold: configuration, metrics, `run.json`, out-of-fold rows.

    `whole` is the joined prediction file, used where the folder has no folds (another team's member).
    """

    name: str
    folder: Path
    configs: dict[int, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[int, pd.DataFrame] = field(default_factory=dict)
    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    parts: dict[int, Predictions] = field(default_factory=dict)
    whole: Predictions | None = None

    @property
    def splits(self) -> set[str]:
        """Return the hashes of the splits that its predictions name; empty where they name none."""
        files = [*self.parts.values(), *([self.whole] if self.whole is not None else [])]
        return {file.header.fold_hash for file in files if file.header is not None and file.header.fold_hash}

    @property
    def seconds(self) -> float:
        """Return the seconds that its finished folds took."""
        return float(sum(done.get("seconds", 0) for done in self.done.values()))


def find_runs(given: Sequence[Path]) -> list[Run]:
    """Read run folders, folders of run folders, and `.csv` files of out-of-fold predictions of other models."""
    folders = [folder for path in given for folder in _expand(Path(path))]
    folders = list(dict.fromkeys(folders))
    names = distinct_names([_named(folder) for folder in folders])
    return [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _expand(path: Path) -> list[Path]:
    if not path.exists():
        find_folder(path, "give what train wrote, e.g. runs/resnet18", what="run folder")
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise UserError(f"{path} is a file; give a run folder, or an out-of-fold prediction file (.csv)")
        return [path]
    if FOLD_FOLDER.fullmatch(path.name) and (path / CONFIG_FILE).is_file():
        raise UserError(f"{path} is one fold of a run; give the run's folder {path.parent}")
    if _is_run(path):
        return [path]
    found = sorted(child for child in path.iterdir() if child.is_dir() and _is_run(child))
    if not found:
        raise UserError(f"{path} has no runs: expected fold0/config.json or oof.csv in it, or folders that have them")
    return found


def _is_run(folder: Path) -> bool:
    return bool(_fold_folders(folder)) or (folder / OOF_FILE).is_file()


def _fold_folders(folder: Path) -> dict[int, Path]:
    found = {int(m[1]): child for child in folder.iterdir() if (m := FOLD_FOLDER.fullmatch(child.name))}
    return {k: found[k] for k in sorted(found) if (found[k] / CONFIG_FILE).is_file()}


def _named(path: Path) -> Path:
    """Return the path that names a run: its folder, or its file without the ending."""
    if path.is_file():
        return path.parent if path.stem == "oof" else path.with_suffix("")
    return path


def _read_run(folder: Path, name: str) -> Run:
    if folder.is_file():
        return Run(name, folder, whole=read_predictions(folder))
    folds = _fold_folders(folder)
    parts = {k: read_predictions(path / OOF_FILE) for k, path in folds.items() if (path / OOF_FILE).is_file()}
    logs = {k: path / "metrics.csv" for k, path in folds.items()}
    done = {k: read_object(path / DONE_FILE) for k, path in folds.items() if (path / DONE_FILE).is_file()}
    joined = folder / OOF_FILE
    return Run(
        name,
        folder,
        configs={k: read_object(path / CONFIG_FILE) | _given(done.get(k, {})) for k, path in folds.items()},
        metrics={k: _read_metrics(log) for k, log in logs.items() if _has_content(log)},
        done=done,
        parts=parts,
        whole=read_predictions(joined) if not parts and joined.is_file() else None,
    )


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _read_metrics(path: Path) -> pd.DataFrame:
    """Read a row an epoch; `note` is the finding of the run's doctor, empty where there was nothing to report."""
    frame = read_csv(path)
    if not {"epoch", "train_loss", "val_loss"} <= set(frame.columns):
        raise UserError(f"{path} must have the columns epoch,train_loss,val_loss, got {','.join(frame.columns)}")
    return frame.assign(note=frame["note"].fillna("").astype(str) if "note" in frame else "")


def _given(done: dict[str, Any]) -> dict[str, Any]:
    """Return what a finished run was given beside its configuration: weights, limits, a noise report, devices."""
    given = done.get("given", {})
    return given if isinstance(given, dict) else {}


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the settings in which runs differ: name, and each run's value (several where its folds differ).

    What one run alone has to set is no difference: a baseline of another kind has other settings.
    """
    names = dict.fromkeys(name for run in runs for config in run.configs.values() for name in config)
    rows = []
    for name in names:
        values = [list(dict.fromkeys(_plain(c[name]) for c in run.configs.values() if name in c)) for run in runs]
        if name not in ("recipe", "about") and len({value for found in values for value in found}) > 1:
            rows.append((name, [" | ".join(found) or "–" for found in values]))
    return rows


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def findings(run: Run) -> list[tuple[int, int, str]]:
    """Return the findings of the run's doctor: fold, epoch (from 1), text."""
    return [
        (k, int(row["epoch"]) + 1, str(row["note"]))
        for k, metrics in run.metrics.items()
        for row in metrics[metrics["note"] != ""].to_dict("records")
    ]
