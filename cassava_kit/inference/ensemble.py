"""The ensemble as a file beside its weights: which checkpoints, with which weights, through which views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from cassava_kit.files import read_json, write_json

ENSEMBLE_FILE = "ensemble.json"


class EnsembleMember(BaseModel):
    """One recipe's checkpoints (one a fold, averaged evenly) and its weight; files lie beside the ensemble file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    weight: float
    checkpoints: tuple[str, ...]
    oof_accuracy: float | None = None


class Ensemble(BaseModel):
    """Members whose weights sum to 1, the views each sees, and the training labels' class shares as the prior."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    members: tuple[EnsembleMember, ...]
    views: str = "flips"
    prior: tuple[float, ...]
    fold_hash: str | None = None
    oof: dict[str, Any] = {}

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> Ensemble:
        weights = [member.weight for member in self.members]
        if not weights or min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(f"members' weights must be at least 0 and sum to 1, got {weights}")
        return self


def write_ensemble(path: str | Path, ensemble: Ensemble) -> None:
    """Write the ensemble file, atomically."""
    write_json(path, ensemble.model_dump(mode="json"))


def read_ensemble(path: str | Path) -> Ensemble:
    """Read and check an ensemble file."""
    try:
        return Ensemble.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"{path} is not an ensemble file ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        ) from None
