"""Check the values of a kernel's parameters as the verbs that it runs check them: `check_parameters`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from cassava_kit.errors import UserError, format_errors
from cassava_kit.kaggle.pack.kernels import Kernel
from cassava_kit.settings import LARGEST_SEED

if TYPE_CHECKING:
    from cassava_kit.training.config import RunConfig
    from cassava_kit.training.ssl.config import PretrainConfig

BASELINE = "logreg"
Value = TypeVar("Value")
# A list; a tuple is taken as one.
Plain = Annotated[list[Value], BeforeValidator(lambda value: list(value) if isinstance(value, tuple) else value)]
# The batch size of a rehearsal, small enough for two CPU cores.
REHEARSED_BATCH = 4


class Parameters(BaseModel):
    """The parameters of a kernel, by the names in its first code cell."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TrainFoldsParameters(Parameters):
    """The parameters of train-folds."""

    RECIPE: str
    FOLDS: Annotated[Plain[int], Field(min_length=1)]
    N_SPLITS: int = Field(ge=2)
    SEED: int = Field(ge=0, le=LARGEST_SEED)
    GROUPS: bool
    GPUS_PER_FOLD: Literal[1, 2]
    WORKERS: int = Field(ge=0)
    WEIGHTS: str
    CLEAN: str
    SET: Plain[str]
    EXISTING: Literal["", "keep", "replace"]

    @model_validator(mode="after")
    def _folds_exist(self) -> TrainFoldsParameters:
        unknown = [fold for fold in self.FOLDS if not 0 <= fold < self.N_SPLITS]
        if unknown or len(set(self.FOLDS)) != len(self.FOLDS):
            raise ValueError(
                f"FOLDS must be distinct numbers in 0..{self.N_SPLITS - 1} (N_SPLITS={self.N_SPLITS}), "
                f"got {list(self.FOLDS)}"
            )
        return self


class PretrainParameters(Parameters):
    """The parameters of pretrain-ssl."""

    METHOD: str
    SET: Plain[str]


class EdaParameters(Parameters):
    """The parameters of eda."""

    N_EACH: int = Field(ge=1)
    N_MEASURED: int = Field(ge=1)
    N_DUPLICATES: int = Field(ge=1)


class GpuCheckParameters(Parameters):
    """The parameters of gpu-check."""

    MINUTES: float = Field(gt=0, allow_inf_nan=False)


PARAMETERS: dict[str, type[Parameters]] = {
    "train-folds": TrainFoldsParameters,
    "pretrain-ssl": PretrainParameters,
    "eda": EdaParameters,
    "gpu-check": GpuCheckParameters,
}


def check_parameters(kernel: Kernel, values: Mapping[str, Any], attached: Sequence[str] = ()) -> None:
    """Check values before anything is sent. `attached`: the datasets and kernels that a push attaches.

    Raises:
        UserError: a value has the wrong type, a recipe, setting or fold does not exist, settings exclude each other, or
            a file is named while nothing is attached that could hold it.
    """
    found = _parsed(kernel, values)
    try:
        if isinstance(found, TrainFoldsParameters):
            _check_training(found)
        elif isinstance(found, PretrainParameters):
            _pretraining(found)
    except ValueError as error:
        raise UserError(f"{kernel.name}: {error}") from None
    named = [name for name in ("WEIGHTS", "CLEAN") if getattr(found, name, "")]
    if named and not attached:
        raise UserError(
            f"{kernel.name}: {' and '.join(f'{name}={values[name]}' for name in named)} must lie in what is attached, "
            "and nothing is; add --attach OWNER/SLUG, or --attach pretrain-ssl for that kernel's output"
        )


def _parsed(kernel: Kernel, values: Mapping[str, Any]) -> Parameters:
    try:
        return PARAMETERS[kernel.name].model_validate(dict(values))
    except ValidationError as error:
        raise UserError(f"{kernel.name}: {format_errors(error)}") from None


def _check_training(given: TrainFoldsParameters) -> None:
    from cassava_kit.models.network import check_image_size
    from cassava_kit.training.losses import make_loss

    if given.RECIPE == BASELINE:
        if given.SET or given.WEIGHTS or given.CLEAN or given.EXISTING or given.GPUS_PER_FOLD > 1:
            raise UserError(
                f"RECIPE={BASELINE} trains no network: leave SET, WEIGHTS, CLEAN, EXISTING and GPUS_PER_FOLD out"
            )
        return
    config = _training(given)
    make_loss(config)
    check_image_size(config.model, config.image_size, config.model_args)


def _training(given: TrainFoldsParameters) -> RunConfig:
    from cassava_kit.training.recipes import recipe

    return recipe(given.RECIPE).with_settings(given.SET)


def _pretraining(given: PretrainParameters) -> PretrainConfig:
    from cassava_kit.models.network import check_image_size
    from cassava_kit.training.ssl.recipes import pretrain_recipe

    config = pretrain_recipe(given.METHOD).with_settings(given.SET)
    check_image_size(config.backbone, config.image_size, config.model_args)
    return config


def rehearsal_parameters(kernel: Kernel, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that reduce a kernel to one small epoch of its recipe, on one of two folds.

    Weights and noise reports are on Kaggle and are left out. Everything else stays as it was packed.
    """
    found = _parsed(kernel, values)
    if isinstance(found, TrainFoldsParameters):
        cut: dict[str, Any] = {"N_SPLITS": 2, "FOLDS": [found.FOLDS[0] % 2], "WEIGHTS": "", "CLEAN": "", "WORKERS": 0}
        if found.RECIPE == BASELINE:
            return cut
        config = _training(found)
        batch = min(config.batch_size, REHEARSED_BATCH)
        changes = {
            **dict.fromkeys(("warmup_epochs", "plain_epochs", "swa_epochs", "unfreeze_every"), 0),
            **{"epochs": 1, "batch_size": batch, "accumulate": 1, "precision": "32-true"},
            **({"ousm": min(config.ousm, batch - 1), "ousm_after": 0} if config.ousm else {}),
            **({"swa_lr_scale": 0.1} if config.swa_epochs else {}),
        }
        return cut | {"SET": [*found.SET, *_differing(config, changes)]}
    if isinstance(found, PretrainParameters):
        method = _pretraining(found)
        return {"SET": [*found.SET, *_differing(method, method.one_small_epoch(REHEARSED_BATCH))]}
    return {}


def _differing(config: RunConfig | PretrainConfig, changes: Mapping[str, Any]) -> list[str]:
    """Return as settings what differs from the configuration."""
    return [f"{name}={value}" for name, value in changes.items() if getattr(config, name) != value]
