"""The ensemble file beside the weights: which checkpoints, their weights and views. Read it with `read_ensemble`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cassava_kit.errors import UserError
from cassava_kit.files import read_json, write_json
from cassava_kit.models.checkpoint import Share

if TYPE_CHECKING:
    import numpy as np

    from cassava_kit.competition import Metric

ENSEMBLE_FILE = "ensemble.json"
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]


class EnsembleMember(BaseModel):
    """One recipe's checkpoints (one a fold, averaged evenly) and its weight; files lie beside the ensemble file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    weight: Share
    checkpoints: tuple[FileName, ...]
    oof_accuracy: float | None = None


class Ensemble(BaseModel):
    """Members whose weights sum to 1, the views each sees, and the training labels' class shares as the prior.

    With `temperatures`, one for each class, the members' mean p becomes softmax(log p_k / T_k).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    members: tuple[EnsembleMember, ...]
    views: str = "flips"
    prior: tuple[Share, ...]
    temperatures: tuple[Temperature, ...] | None = None
    fold_hash: str | None = None
    oof: dict[str, Any] = {}

    @model_validator(mode="after")
    def _weights_and_temperatures_fit(self) -> Ensemble:
        weights = [member.weight for member in self.members]
        if not weights or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(f"members' weights must be at least 0 and sum to 1, got {weights}")
        if self.temperatures is not None and len(self.temperatures) != len(self.prior):
            raise ValueError(f"expected {len(self.prior)} temperatures, one for each class, got {self.temperatures}")
        return self


def write_ensemble(path: str | Path, ensemble: Ensemble) -> None:
    """Write the ensemble file, atomically."""
    write_json(path, ensemble.model_dump(mode="json"))


def read_ensemble(path: str | Path) -> Ensemble:
    """Read and check an ensemble file; UserError naming the field that is wrong."""
    try:
        return Ensemble.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "members"
        raise UserError(f"{path} is not an ensemble file ({field}: {first['msg']}, got {first['input']!r})") from None


def loss_without(
    metric: Metric,
    names: Sequence[str],
    labels: np.ndarray,
    pred_probs: np.ndarray,
    weights: Sequence[float] | np.ndarray,
    *,
    temperatures: np.ndarray | None = None,
) -> dict[str, float]:
    """Return by how much the ensemble's metric is worse out of fold without each member in turn.

    `names` (M,), `labels` (N,), `pred_probs` (M, N, K) out of fold, `weights` (M,). The others' weights, and
    `temperatures` (K,) of the classes, stay as they are. A member whose loss leaves nothing that votes is left out.
    """
    import numpy as np

    from cassava_kit.evidence.calibration import apply_temperatures
    from cassava_kit.evidence.metrics import gain, metric_value

    def value(weights: np.ndarray) -> float:
        mean = np.tensordot(weights / weights.sum(), pred_probs, axes=1)
        return metric_value(metric, labels, mean if temperatures is None else apply_temperatures(mean, temperatures))

    w = np.asarray(weights, float)
    whole = value(w)
    found = {}
    for m, name in enumerate(names):
        others = np.where(np.arange(len(w)) == m, 0.0, w)
        if others.sum() > 1e-9:
            found[name] = gain(metric, value(others), whole)
    return found
