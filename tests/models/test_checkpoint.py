"""Checkpoints: weights and header in one file, and the refusal of what is not one."""

import pytest
import torch
from safetensors.torch import save_file

from cassava_kit.models.checkpoint import CheckpointInfo, load_model, read_info, save_checkpoint
from cassava_kit.models.network import create_model

INFO = CheckpointInfo(
    model="resnet10t",
    model_args={"channels": [8, 16, 32, 64]},
    head="dense",
    n_classes=5,
    input_size=(32, 48),
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    recipe="r",
    fold=3,
    fold_hash="abc",
    prior=(0.2,) * 5,
)


@pytest.fixture
def checkpoint(tmp_path):
    model = create_model(INFO.model, 5, model_args=INFO.model_args, head="dense")
    save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), INFO)
    return tmp_path / "a.safetensors", model


def test_model_and_header_come_back_as_they_were(checkpoint):
    path, model = checkpoint
    loaded, info = load_model(path)
    assert info == INFO == read_info(path) and info.name == "r-fold3"
    assert not loaded.training
    x = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model.eval()(x))


def test_truncated_file_is_refused(checkpoint):
    path, _ = checkpoint
    content = path.read_bytes()
    for keep in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(ValueError, match=r"not a whole \.safetensors file"):
            read_info(path)


def test_foreign_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="has no cassava_kit header"):
        read_info(tmp_path / "a.safetensors")


def test_header_of_another_kit_is_refused_by_field(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"cassava_kit": '{"model": "resnet18"}'})
    with pytest.raises(ValueError, match=r"a header this kit cannot read \(n_classes"):
        read_info(tmp_path / "a.safetensors")


def test_weights_that_another_timm_named_otherwise_are_refused(checkpoint):
    path, model = checkpoint
    save_checkpoint(path, {f"stem.{key}": value for key, value in model.state_dict().items()}, INFO)
    with pytest.raises(
        ValueError, match=r"a.safetensors does not fit resnet10t of this timm: Missing key.*train it again"
    ):
        load_model(path)


def test_a_header_without_a_competition_is_read(tmp_path):
    old = INFO.model_dump_json(exclude={"competition"})
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"cassava_kit": old})
    assert read_info(tmp_path / "a.safetensors") == INFO and INFO.competition is None


def test_failed_save_leaves_the_old_file(checkpoint):
    path, _ = checkpoint
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        save_checkpoint(path, {"w": "not a tensor"}, INFO)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
