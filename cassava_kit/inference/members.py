"""Which files of a weights folder take part in the ensemble, with which weight, and which are left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cassava_kit.checkpoint import CheckpointInfo, read_info
from cassava_kit.competition import Competition, current
from cassava_kit.files import read_json, sha256_file
from cassava_kit.inference.choices import VIEWS
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, read_ensemble
from cassava_kit.paths import WEIGHTS_MANIFEST

if TYPE_CHECKING:
    from cassava_kit.predictions import Predictions

FALLBACK_VIEWS = "flips"


@dataclass(frozen=True)
class Part:
    """One file that votes: a checkpoint (`info`), or a foreign file of probabilities by image (`predictions`)."""

    path: Path
    member: str
    weight: float
    info: CheckpointInfo | None = None
    predictions: Predictions | None = None

    @property
    def name(self) -> str:
        """The file's name, by which reports know it."""
        return self.path.name


@dataclass(frozen=True)
class Members:
    """The parts that vote (weights sum to 1), the files left out and why, the prior, and the ensemble as read."""

    parts: tuple[Part, ...]
    left_out: dict[str, str]
    prior: tuple[float, ...]
    views: str
    ensemble: Ensemble | None


def read_prior(weights_dir: Path, competition: Competition | None = None) -> tuple[float, ...]:
    """Class shares of the training labels: the ensemble file's, else a checkpoint's, else the competition's.

    Reads headers alone and needs no model library: the first answer is on disk before torch is imported.
    """
    competition = competition or current()
    ensemble, _ = _ensemble_or_reason(weights_dir)
    if ensemble is not None and len(ensemble.prior) == competition.n_classes:
        return ensemble.prior
    for path in sorted(weights_dir.glob("*.safetensors")):
        try:
            prior = read_info(path).prior
        except (OSError, ValueError):
            continue
        if prior is not None and len(prior) == competition.n_classes:
            return prior
    return competition.prior


def load_members(weights_dir: str | Path, competition: Competition | None = None) -> Members:
    """Read a weights folder: `ensemble.json`, the files it names, and their hashes where a manifest lists them.

    A file that is missing, broken, of another build or for other classes is left out by name; the others share its
    weight. Without a readable `ensemble.json` every checkpoint in the folder takes part, recipes with equal weight.
    """
    folder, competition = Path(weights_dir), competition or current()
    ensemble, reason = _ensemble_or_reason(folder)
    left_out: dict[str, str] = {} if reason is None else {ENSEMBLE_FILE: reason}
    hashes = _manifest_hashes(folder, left_out)
    members = ensemble.members if ensemble else _every_checkpoint(folder)
    parts: list[Part] = []
    for member in members:
        kept = _member_parts(member, folder, competition, hashes, left_out)
        # A lost fold's weight goes to its sister folds, not to other members.
        parts += [replace(part, weight=member.weight / len(kept)) for part in kept]
    views = ensemble.views if ensemble else FALLBACK_VIEWS
    if views not in VIEWS:
        left_out["views"] = f"the ensemble file asks for {views!r}, known: {', '.join(VIEWS)}; {FALLBACK_VIEWS} it is"
        views = FALLBACK_VIEWS
    return Members(reweighted(parts), left_out, read_prior(folder, competition), views, ensemble)


def reweighted(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with weights that sum to 1; parts without weight only if nothing else is left."""
    total = sum(part.weight for part in parts)
    if total <= 0:
        return tuple(replace(part, weight=1 / len(parts)) for part in parts)
    return tuple(replace(part, weight=part.weight / total) for part in parts if part.weight > 0)


def with_pixels(members: Members, pixels: str) -> Members:
    """The members with one path from file to pixels for all checkpoints, whatever their headers say."""
    parts = tuple(
        replace(part, info=part.info and part.info.model_copy(update={"pixels": pixels})) for part in members.parts
    )
    return replace(members, parts=parts)


def _member_parts(
    member: EnsembleMember, folder: Path, competition: Competition, hashes: dict[str, str], left_out: dict[str, str]
) -> list[Part]:
    kept = []
    for name in member.checkpoints:
        try:
            kept.append(_part(folder / name, member, competition, hashes.get(name, "") if hashes else None))
        except (OSError, ValueError) as error:
            left_out[name] = str(error)
    return kept


def _part(path: Path, member: EnsembleMember, competition: Competition, sha256: str | None) -> Part:
    if not path.is_file():
        raise FileNotFoundError("the file is missing")
    if sha256 == "":
        raise ValueError(f"of another build: {WEIGHTS_MANIFEST} does not list it")
    if sha256 and sha256_file(path) != sha256:
        raise ValueError(f"of another build, or damaged: its SHA-256 is not the one in {WEIGHTS_MANIFEST}")
    if path.suffix == ".csv":
        # Late: pandas takes half a second to import, and the first file must be on disk in one.
        from cassava_kit.predictions import read_predictions

        predictions = read_predictions(path)
        _check_classes(predictions.probabilities.shape[1], competition)
        return Part(path, member.name, member.weight, predictions=predictions)
    info = read_info(path)
    _check_classes(info.n_classes, competition)
    return Part(path, member.name, member.weight, info=info)


def _check_classes(n_classes: int, competition: Competition) -> None:
    if n_classes != competition.n_classes:
        raise ValueError(f"predicts {n_classes} classes, the competition has {competition.n_classes}")


def _ensemble_or_reason(folder: Path) -> tuple[Ensemble | None, str | None]:
    path = folder / ENSEMBLE_FILE
    if not path.is_file():
        return None, "the file is missing: every checkpoint in the folder takes part, recipes with equal weight"
    try:
        return read_ensemble(path), None
    except (OSError, ValueError) as error:
        return None, f"{error}: every checkpoint in the folder takes part, recipes with equal weight"


def _every_checkpoint(folder: Path) -> tuple[EnsembleMember, ...]:
    """One member per recipe from whatever checkpoints the folder holds; unreadable ones keep their file's name."""
    by_recipe: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            recipe = read_info(path).recipe
        except (OSError, ValueError):
            recipe = path.stem
        by_recipe.setdefault(recipe, []).append(path.name)
    return tuple(
        EnsembleMember(name=recipe, weight=1 / len(by_recipe), checkpoints=tuple(names))
        for recipe, names in by_recipe.items()
    )


def _manifest_hashes(folder: Path, left_out: dict[str, str]) -> dict[str, str]:
    """SHA-256 by file name from the weights' manifest; none where there is no manifest or it cannot be read."""
    path = folder / WEIGHTS_MANIFEST
    if not path.is_file():
        return {}
    try:
        content: Any = read_json(path)
        return {entry["name"]: entry["sha256"] for entry in content["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        left_out[path.name] = f"cannot be read ({error}); no file is compared with its hash"
        return {}


def foreign_probabilities(part: Part, image_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of `image_ids` that a foreign file predicts, and its probabilities (n, K) for them."""
    assert part.predictions is not None
    position = {name: row for row, name in enumerate(image_ids)}
    found = [(position[name], i) for i, name in enumerate(part.predictions.ids) if name in position]
    rows, at = (np.array(column, int) for column in zip(*found, strict=True)) if found else (np.empty(0, int),) * 2
    return rows, part.predictions.probabilities[at]
