"""A folder of small images and a folder of small members."""

from pathlib import Path

import pytest
import torch
from tiny_members import PRIOR, write_checkpoint, write_image

from cassava_kit.inference import pixels
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, write_ensemble


@pytest.fixture(autouse=True)
def one_thread_and_two_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(pixels, "cpu_count", lambda: 2)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(21):
        write_image(folder / f"{i:03d}.jpg", i)
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Three members of three families, one of two folds, one of another input size."""
    folder = tmp_path / "weights"
    folder.mkdir()
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
    return folder
