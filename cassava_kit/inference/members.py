"""Which files of a weights folder take part in the ensemble, with which weight, and which are left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cassava_kit.competition import Competition, current
from cassava_kit.errors import UserError
from cassava_kit.files import WEIGHTS_MANIFEST, read_json, sha256_file
from cassava_kit.inference.clock import Clock
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, read_ensemble
from cassava_kit.models.checkpoint import CheckpointInfo, read_info

FALLBACK_VIEWS = "flips"


@dataclass(frozen=True)
class Part:
    """One checkpoint that votes: its file, its member's name, its weight and its header."""

    path: Path
    member: str
    weight: float
    info: CheckpointInfo

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


def load_members(
    weights_dir: str | Path, competition: Competition | None = None, *, clock: Clock | None = None
) -> Members:
    """Read a weights folder: `ensemble.json`, the files it names, and their hashes where a manifest lists them.

    A file that is missing, broken, of another build, of another competition or for other classes, or for which the
    clock leaves no time, is left out by name; the others share its weight. Without a readable `ensemble.json` every
    checkpoint in the folder takes part, recipes with equal weight.
    """
    clock = clock or Clock()
    folder, competition = Path(weights_dir), competition or current()
    ensemble, reason = _ensemble_or_reason(folder)
    left_out: dict[str, str] = {} if reason is None else {ENSEMBLE_FILE: reason}
    hashes = _manifest_hashes(folder, left_out)
    members = ensemble.members if ensemble else _every_checkpoint(folder)
    parts: list[Part] = []
    for member in members:
        kept = []
        for name in member.checkpoints:
            try:
                if clock.left <= 0:
                    raise TimeoutError("the time was over before it was read")
                kept.append(_part(folder / name, member, competition, hashes.get(name, "") if hashes else None))
            except (OSError, ValueError) as error:
                left_out[name] = str(error)
        # A lost fold's weight goes to its sister folds, not to other members.
        parts += [replace(part, weight=member.weight / len(kept)) for part in kept]
    views = _known_views(ensemble, left_out)
    return Members(reweighted(parts), left_out, read_prior(folder, competition), views, ensemble)


def _known_views(ensemble: Ensemble | None, left_out: dict[str, str]) -> str:
    """The ensemble file's views; `FALLBACK_VIEWS` where it names none that the kit has."""
    from cassava_kit.inference.tta import PRESETS  # late: torch takes seconds, and the first file must not wait for it

    if ensemble is None or ensemble.views in PRESETS:
        return ensemble.views if ensemble else FALLBACK_VIEWS
    known = ", ".join(PRESETS)
    left_out["views"] = f"the ensemble file asks for {ensemble.views!r}, known: {known}; {FALLBACK_VIEWS} are taken"
    return FALLBACK_VIEWS


def reweighted(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with weights that sum to 1; parts without weight only if nothing else is left."""
    total = sum(part.weight for part in parts)
    if total <= 0:
        return tuple(replace(part, weight=1 / len(parts)) for part in parts)
    return tuple(replace(part, weight=part.weight / total) for part in parts if part.weight > 0)


def _part(path: Path, member: EnsembleMember, competition: Competition, sha256: str | None) -> Part:
    if not path.is_file():
        raise FileNotFoundError("the file is missing")
    if sha256 == "":
        raise UserError(f"of another build: {WEIGHTS_MANIFEST} does not list it")
    if sha256 and sha256_file(path) != sha256:
        raise UserError(f"of another build, or damaged: its SHA-256 is not the one in {WEIGHTS_MANIFEST}")
    info = read_info(path)
    if info.n_classes != competition.n_classes:
        raise UserError(f"predicts {info.n_classes} classes, the competition has {competition.n_classes}")
    if info.competition not in (None, competition.slug):
        raise UserError(f"was trained for the competition {info.competition}, this one is {competition.slug}")
    return Part(path, member.name, member.weight, info)


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
