"""Parameters of kernels: each slip is named at home, and what a rehearsal makes of a recipe is that recipe still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cassava_kit.cli.parameters import check_parameters, rehearsal_parameters
from cassava_kit.errors import UserError
from cassava_kit.kaggle.pack.kernels import KERNELS, find_kernel, kernel_parameters, parse_changes
from cassava_kit.training.recipes import recipe, recipe_names
from cassava_kit.training.ssl import recipes as pretraining

REPOSITORY = Path(__file__).resolve().parents[2]


def values(kernel: str, *parameters: str) -> dict[str, Any]:
    """All parameters of a kernel, some of them changed."""
    return kernel_parameters(find_kernel(kernel), REPOSITORY, parse_changes(parameters, []))


@pytest.mark.parametrize(
    ("kernel", "parameters", "message"),
    [
        ("train-folds", ["RECIPE=resnet51"], r"no recipe 'resnet51' \(did you mean resnet50"),
        ("train-folds", ["RECIPE=timm:resnt50"], "timm has no model 'resnt50'"),
        ("train-folds", ["RECIPE=3"], "RECIPE: Input should be a valid string, got 3"),
        ("train-folds", ["SET=['precison=16-mixed']"], r"no setting 'precison' \(did you mean precision"),
        ("train-folds", ["SET=['precision=17']"], "precision: Input should be '32-true'"),
        ("train-folds", ["SET=epochs=3"], "SET: Input should be a valid list, got 'epochs=3'"),
        ("train-folds", ["SET=['image_size=7']"], "image_size: Input should be greater than or equal to 8"),
        (
            "train-folds",
            ["FOLDS=[0,7]"],
            r"FOLDS must be distinct numbers in 0\.\.4 \(N_SPL.*, got \[0, 7\]",
        ),
        ("train-folds", ["FOLDS=[0]", "N_SPLITS=1"], "N_SPLITS: Input should be greater than or equal to 2, got 1"),
        ("train-folds", ["FOLDS=[1,1]"], "FOLDS must be distinct"),
        ("train-folds", ["FOLDS=[]"], "FOLDS: .* should have at least 1 item"),
        ("train-folds", ["FOLDS=0"], "FOLDS: Input should be a valid list, got 0"),
        ("train-folds", ["GPUS_PER_FOLD=3"], "GPUS_PER_FOLD: Input should be 1 or 2, got 3"),
        ("train-folds", ["GROUPS=yes"], "GROUPS: Input should be a valid boolean"),
        ("train-folds", ["SEED=-1"], "SEED: Input should be greater than or equal to 0"),
        ("train-folds", ["WORKERS=-1"], "WORKERS: Input should be greater than or equal to 0"),
        ("train-folds", ["EXISTING=drop"], "EXISTING: Input should be '', 'keep' or 'replace'"),
        ("train-folds", ["RECIPE=logreg", "SET=['epochs=1']"], "logreg trains no network: leave SET"),
        ("train-folds", ["WEIGHTS=best.safetensors"], "WEIGHTS=best.safetensors must lie in what is attached"),
        ("train-folds", ["CLEAN=clean.csv"], "CLEAN=clean.csv must lie in what is attached"),
        ("pretrain-ssl", ["METHOD=bylo"], "'bylo'"),
        ("pretrain-ssl", ["SET=['temperature=3']"], "no setting .temperature."),
        ("gpu-check", ["MINUTES=0"], "MINUTES: Input should be greater than 0, got 0"),
        ("eda", ["N_DUPLICATES=0"], "N_DUPLICATES: Input should be greater than or equal to 1, got 0"),
    ],
)
def test_a_slip_is_named_at_home(kernel: str, parameters: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{kernel}: .*{message}"):
        check_parameters(find_kernel(kernel), values(kernel, *parameters))


def test_what_can_run_is_let_through() -> None:
    for kernel in KERNELS[1:]:
        check_parameters(kernel, values(kernel.name))
    check_parameters(find_kernel("train-folds"), values("train-folds", "FOLDS=(0, 3)", "RECIPE=logreg"))
    check_parameters(find_kernel("train-folds"), values("train-folds", "WEIGHTS=b.safetensors"), ["pretrain-ssl"])


@pytest.mark.parametrize("name", recipe_names())
def test_a_rehearsal_of_every_recipe_is_one_small_epoch_of_it(name: str) -> None:
    """On the processor, whatever the recipe goes with; everything that does not cost time stays."""
    kernel = find_kernel("train-folds")
    given = values("train-folds", f"RECIPE={name}", "FOLDS=[2, 0]", "SET=['seed=7']", "WEIGHTS=w", "CLEAN=c")
    cut = rehearsal_parameters(kernel, given)
    check_parameters(kernel, given | cut)
    assert (cut["FOLDS"], cut["N_SPLITS"], cut["WEIGHTS"], cut["CLEAN"]) == ([0], 2, "", "")
    before, after = recipe(name), recipe(name).with_settings(cut["SET"])
    assert (after.epochs, after.precision, after.seed) == (1, "32-true", 7) and after.batch_size <= 4
    same = (
        "model",
        "model_args",
        "head",
        "image_size",
        "optimizer",
        "loss",
        "augmentation",
        "freeze_backbone",
        "mixup",
    )
    assert all(getattr(after, field) == getattr(before, field) for field in same)


@pytest.mark.parametrize("name", ["simclr", "moco", "byol", "swav", "small_simclr", "swav_resnet50"])
def test_a_rehearsal_of_every_method_is_one_small_epoch_of_it(name: str) -> None:
    kernel = find_kernel("pretrain-ssl")
    given = values("pretrain-ssl", f"METHOD={name}")
    cut = rehearsal_parameters(kernel, given)
    check_parameters(kernel, given | cut)
    after = pretraining.pretrain_recipe(name).with_settings(cut["SET"])
    assert (after.epochs, after.num_workers, after.precision) == (1, 0, "32-true") and after.batch_size <= 16
