"""A folder of small images and a folder of small members."""

import shutil
from pathlib import Path

import pytest
import torch
from once import made_once
from tiny_members import PRIOR, write_checkpoint, write_image

from cassava_kit.inference import pixels
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, write_ensemble


@pytest.fixture(autouse=True)
def one_thread_and_two_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(pixels, "cpu_count", lambda: 2)


@pytest.fixture(scope="session")
def made_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of every test, written once; not to be changed."""

    def make(folder: Path) -> None:
        for i in range(21):
            write_image(folder / f"{i:03d}.jpg", i)

    return made_once(tmp_path_factory, "images", make)


@pytest.fixture
def images(made_images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_images, tmp_path / "images"))


@pytest.fixture(scope="session")
def made_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The members of every test, written once; not to be changed."""

    def make(folder: Path) -> None:
        write_checkpoint(folder / "res-fold0.safetensors", "test_resnet")
        write_checkpoint(folder / "res-fold1.safetensors", "test_resnet", fold=1)
        write_checkpoint(folder / "eff-fold0.safetensors", "test_efficientnet", size=(48, 48), mean=(0.5, 0.5, 0.5))
        write_checkpoint(folder / "vit-fold0.safetensors", "test_vit", size=(32, 32))
        members = (
            EnsembleMember(name="res", weight=0.5, checkpoints=("res-fold0.safetensors", "res-fold1.safetensors")),
            EnsembleMember(name="eff", weight=0.3, checkpoints=("eff-fold0.safetensors",)),
            EnsembleMember(name="vit", weight=0.2, checkpoints=("vit-fold0.safetensors",)),
        )
        write_ensemble(folder / ENSEMBLE_FILE, Ensemble(members=members, views="flips", prior=PRIOR))

    return made_once(tmp_path_factory, "weights", make)


@pytest.fixture
def weights(made_weights: Path, tmp_path: Path) -> Path:
    """Three members of three families, one of two folds, one of another input size."""
    return Path(shutil.copytree(made_weights, tmp_path / "weights"))
