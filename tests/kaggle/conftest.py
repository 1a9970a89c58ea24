"""A copy of the repository to package from, and small checkpoints to pack."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from once import made_once

from cassava_kit.inference.ensemble import Ensemble, EnsembleMember
from cassava_kit.kaggle.pack.bundle import Bundle, package, read_bundle
from cassava_kit.models.checkpoint import CheckpointInfo, save_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
PRIOR = (0.05, 0.10, 0.11, 0.62, 0.12)
TINY_VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What packaging reads of the repository, copied once; not to be changed."""

    def make(folder: Path) -> None:
        for name in ("pyproject.toml", "dataset-metadata.json", "README.md", "LICENSE"):
            shutil.copy(REPOSITORY / name, folder)
        for name in ("cassava_kit", "kernels"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))

    return made_once(tmp_path_factory, "repository", make)


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A repository that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "repository"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two members' checkpoints, one fold each, that really load and predict."""
    from cassava_kit.models.network import create_model

    folder, made = tmp_path_factory.mktemp("checkpoints"), {}
    for seed, recipe in enumerate(("vit_a", "vit_b")):
        torch.manual_seed(seed)
        model = create_model("vit_tiny_patch16_224", 5, model_args=TINY_VIT)
        info = CheckpointInfo(
            model="vit_tiny_patch16_224",
            model_args=TINY_VIT,
            n_classes=5,
            input_size=(32, 32),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            recipe=recipe,
            fold=0,
            n_splits=2,
            fold_hash="0" * 64,
            prior=PRIOR,
        )
        made[f"{info.name}.safetensors"] = folder / f"{recipe}.safetensors"
        save_checkpoint(made[f"{info.name}.safetensors"], model.state_dict(), info)
    return made


@pytest.fixture(scope="session")
def ensemble(checkpoints: dict[str, Path]) -> Ensemble:
    """Both members, one with twice the other's weight."""
    weights = (1 / 3, 2 / 3)
    members = tuple(
        EnsembleMember(name=name.partition("-")[0], weight=weight, checkpoints=(name,))
        for name, weight in zip(checkpoints, weights, strict=True)
    )
    return Ensemble(members=members, prior=PRIOR)


@pytest.fixture(scope="session")
def packed(
    ensemble: Ensemble, checkpoints: dict[str, Path], pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle's folder, packed once; not to be changed."""

    def make(folder: Path) -> None:
        package(folder / "build", ensemble=ensemble, checkpoints=checkpoints, root=pristine)

    return made_once(tmp_path_factory, "packed", make) / "build"


@pytest.fixture
def bundle(packed: Path, tmp_path: Path) -> Bundle:
    """A bundle that a test may change, in `tmp_path/build`."""
    shutil.copytree(packed, tmp_path / "build")
    return read_bundle(tmp_path / "build")
