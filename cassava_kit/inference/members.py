"""Which checkpoints of a weights folder vote, with which weight, and which are left out and why: `load_members`."""

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
from cassava_kit.models.checkpoint import CheckpointInfo, read_info, refuse_other_competition

FALLBACK_VIEWS = "flips"


@dataclass(frozen=True)
class MemberCheckpoint:
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
    """Checkpoints that vote (weights sum to 1), files left out and why, the prior, views, and the ensemble file."""

    checkpoints: tuple[MemberCheckpoint, ...]
    left_out: dict[str, str]
    prior: tuple[float, ...]
    views: str
    ensemble: Ensemble | None

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """Temperature of each class, which the ensemble file has; None without."""
        return self.ensemble.temperatures if self.ensemble else None


def read_prior(weights_dir: Path, competition: Competition | None = None) -> tuple[float, ...]:
    """Return the training labels' class shares (K,): the ensemble file's, else a checkpoint's, else the competition's.

    Only headers are read and no model library is imported: the first file must not wait for torch.
    """
    competition = competition or current()
    ensemble, _ = _ensemble_or_reason(weights_dir)
    if ensemble is not None and len(ensemble.prior) == competition.n_classes:
        return ensemble.prior
    for path in sorted(weights_dir.glob("*.safetensors")):
        try:
            info = read_info(path)
            refuse_other_competition(info, competition)
        except (OSError, ValueError):
            continue
        if info.prior is not None and len(info.prior) == competition.n_classes:
            return info.prior
    return competition.prior


def load_members(
    weights_dir: str | Path, competition: Competition | None = None, *, clock: Clock | None = None
) -> Members:
    """Read a weights folder: `ensemble.json`, the files it names, and their hashes where a manifest lists them.

    A file that is missing, broken, of another build, competition or number of classes is left out by name, and so is
    one that the clock leaves no time for; the others share its weight. Without a readable `ensemble.json` every
    checkpoint in the folder votes, recipes with equal weight.
    """
    clock = clock or Clock()
    folder, competition = Path(weights_dir), competition or current()
    ensemble, reason = _ensemble_or_reason(folder)
    left_out: dict[str, str] = {} if reason is None else {ENSEMBLE_FILE: reason}
    hashes = _manifest_hashes(folder, left_out)
    members = ensemble.members if ensemble else _members_by_recipe(folder)
    checkpoints: list[MemberCheckpoint] = []
    for member in members:
        kept = []
        for name in member.checkpoints:
            try:
                if clock.left <= 0:
                    raise TimeoutError("the time was over before it was read")
                kept.append(_read_member(folder / name, member, competition, hashes.get(name, "") if hashes else None))
            except (OSError, ValueError) as error:
                left_out[name] = str(error)
        # A lost fold's weight goes to its sister folds, not to other members.
        checkpoints += [replace(checkpoint, weight=member.weight / len(kept)) for checkpoint in kept]
    views = _known_views(ensemble, left_out)
    return Members(normalize_weights(checkpoints), left_out, read_prior(folder, competition), views, ensemble)


def _known_views(ensemble: Ensemble | None, left_out: dict[str, str]) -> str:
    """The ensemble file's views; `FALLBACK_VIEWS` where it names none that the kit has."""
    from cassava_kit.inference.tta import PRESETS  # late: torch takes seconds, and the first file must not wait for it

    if ensemble is None or ensemble.views in PRESETS:
        return ensemble.views if ensemble else FALLBACK_VIEWS
    known = ", ".join(PRESETS)
    left_out["views"] = f"the ensemble file asks for {ensemble.views!r}, known: {known}; {FALLBACK_VIEWS} are taken"
    return FALLBACK_VIEWS


def normalize_weights(checkpoints: Sequence[MemberCheckpoint]) -> tuple[MemberCheckpoint, ...]:
    """Return the checkpoints with weights that sum to 1; those of weight 0 only if there are no others."""
    total = sum(checkpoint.weight for checkpoint in checkpoints)
    if total <= 0:
        return tuple(replace(one, weight=1 / len(checkpoints)) for one in checkpoints)
    return tuple(
        replace(checkpoint, weight=checkpoint.weight / total) for checkpoint in checkpoints if checkpoint.weight > 0
    )


def _read_member(path: Path, member: EnsembleMember, competition: Competition, sha256: str | None) -> MemberCheckpoint:
    if not path.is_file():
        raise FileNotFoundError("the file is missing")
    if sha256 == "":
        raise UserError(f"of another build: {WEIGHTS_MANIFEST} does not list it")
    if sha256 and sha256_file(path) != sha256:
        raise UserError(f"of another build, or damaged: its SHA-256 is not the one in {WEIGHTS_MANIFEST}")
    info = read_info(path)
    if info.n_classes != competition.n_classes:
        raise UserError(f"predicts {info.n_classes} classes, the competition has {competition.n_classes}")
    refuse_other_competition(info, competition)
    return MemberCheckpoint(path, member.name, member.weight, info)


def _ensemble_or_reason(folder: Path) -> tuple[Ensemble | None, str | None]:
    path = folder / ENSEMBLE_FILE
    if not path.is_file():
        return None, "the file is missing: every checkpoint in the folder votes, recipes with equal weight"
    try:
        return read_ensemble(path), None
    except (OSError, ValueError) as error:
        return None, f"{error}: every checkpoint in the folder votes, recipes with equal weight"


def _members_by_recipe(folder: Path) -> tuple[EnsembleMember, ...]:
    """Return one member per recipe from all checkpoints in the folder; an unreadable one is named after its file."""
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
    """SHA-256 by file name from the weights' manifest; empty without a manifest that can be read."""
    path = folder / WEIGHTS_MANIFEST
    if not path.is_file():
        return {}
    try:
        content: Any = read_json(path)
        return {entry["name"]: entry["sha256"] for entry in content["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        left_out[path.name] = f"cannot be read ({error}); no file is compared with its hash"
        return {}
