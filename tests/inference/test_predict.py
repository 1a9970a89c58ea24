"""`predict_images` is the plain loop over `load_image`, only faster."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_members import PRIOR, write_checkpoint

from cassava_kit.data.images import load_image
from cassava_kit.data.transforms import normalize
from cassava_kit.inference.predict import choose_batch_size, predict_images
from cassava_kit.inference.tta import make_views
from cassava_kit.models.checkpoint import load_model

# Float32 with fused convolutions and batch norms: 1.1e-5 was seen with random weights.
TOLERANCE = 5e-5


@torch.no_grad()
def by_hand(checkpoint: Path, paths: list[Path], views: str) -> np.ndarray:
    model, info = load_model(checkpoint)
    rows = []
    for path in paths:
        x = torch.from_numpy(load_image(path, info.input_size)).permute(2, 0, 1)[None]
        x = normalize(x, info.mean, info.std)
        rows.append(torch.stack([model(view(x)).softmax(1)[0] for view in make_views(views)]).mean(0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("views", ["none", "d4+zoom"])
def test_it_equals_the_loop_by_hand(images: Path, weights: Path, views: str) -> None:
    paths, checkpoints = sorted(images.iterdir()), sorted(weights.glob("*.safetensors"))
    found, failed = predict_images(checkpoints, paths, views=views, batch_size=8, device="cpu", progress=False)
    assert found.shape == (4, 21, 5) and found.dtype == np.float32 and failed == []
    for member, checkpoint in enumerate(checkpoints):
        expected = by_hand(checkpoint, paths, views)
        assert np.abs(found[member] - expected).max() < TOLERANCE
        assert len(set(expected.argmax(1))) > 1  # the test would not notice a shuffled answer otherwise


def test_several_devices_give_the_same(images: Path, weights: Path) -> None:
    paths, checkpoints = sorted(images.iterdir()), sorted(weights.glob("*.safetensors"))
    one, _ = predict_images(checkpoints, paths, batch_size=2, device="cpu", progress=False)
    two, _ = predict_images(checkpoints, paths, batch_size=2, device=["cpu", "cpu"], progress=False)
    assert np.array_equal(one, two)


def test_a_broken_file_gets_the_prior_and_changes_no_bit_of_the_others(images: Path, weights: Path) -> None:
    paths, checkpoints = sorted(images.iterdir()), sorted(weights.glob("*.safetensors"))
    good, _ = predict_images(checkpoints, paths, views="flips", batch_size=4, device="cpu", progress=False)
    paths[5].write_bytes(b"<html>")
    found, failed = predict_images(checkpoints, paths, views="flips", batch_size=4, device="cpu", progress=False)
    assert failed == ["005.jpg"]
    assert np.allclose(found[:, 5], PRIOR)
    others = np.arange(21) != 5
    assert np.array_equal(found[:, others], good[:, others])


def test_the_same_row_bit_for_bit_whatever_stands_beside_it(images: Path, weights: Path) -> None:
    paths, checkpoints = sorted(images.iterdir()), sorted(weights.glob("*.safetensors"))
    alone, _ = predict_images(checkpoints, paths, batch_size=8, device="cpu", progress=False)
    shuffled, _ = predict_images(checkpoints, paths[13:] + paths[:13], batch_size=8, device="cpu", progress=False)
    assert np.array_equal(np.roll(shuffled, 13, axis=1), alone)


def test_checkpoints_must_share_their_classes(images: Path, tmp_path: Path) -> None:
    a = write_checkpoint(tmp_path / "a-fold0.safetensors")
    b = write_checkpoint(tmp_path / "b-fold0.safetensors", n_classes=7)
    with pytest.raises(ValueError, match=r"same classes, got \[5, 7\]"):
        predict_images([a, b], sorted(images.iterdir()))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        predict_images([tmp_path / "none.safetensors"], sorted(images.iterdir()))


def test_no_images_give_an_empty_answer(weights: Path) -> None:
    found, failed = predict_images([weights / "res-fold0.safetensors"], [], device="cpu")
    assert found.shape == (1, 0, 5) and failed == []


def test_few_images_do_not_fill_a_large_batch() -> None:
    cpu = torch.device("cpu")
    assert [choose_batch_size(16, cpu, n) for n in (0, 1, 2, 3, 9, 16, 17, 999)] == [1, 1, 2, 4, 16, 16, 16, 16]
