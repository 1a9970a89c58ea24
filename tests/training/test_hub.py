"""Published weights as files: from a stand-in of the hub, and where it does not answer."""

import json

import pytest
import timm
import torch

from cassava_kit.models.weights import load_tensors
from cassava_kit.training.hub import fetch_weights

TINY = "timm:test_resnet"


@pytest.fixture
def hub(monkeypatch) -> list[str]:
    """timm with weights of its own making for every model asked for with pretrained=True; the names asked for."""
    asked, plain = [], timm.create_model

    def create(name, pretrained=False, **arguments):
        model = plain(name, **arguments)
        if pretrained:
            asked.append(name)
            torch.nn.init.constant_(model.conv1[0].weight, 0.25)
        return model

    monkeypatch.setattr(timm, "create_model", create)
    return asked


def test_weights_become_a_file_and_a_dataset(hub, tmp_path):
    told = fetch_weights([TINY], tmp_path / "w", owner="me")
    path = tmp_path / "w" / "test_resnet.safetensors"
    assert hub == ["test_resnet"] and told[0].startswith(f"{path}: ") and "tensors loaded" in told[0]
    assert (load_tensors(path)["conv1.0.weight"] == 0.25).all()
    described = json.loads((tmp_path / "w" / "dataset-metadata.json").read_text())
    assert described["id"] == "me/imagenet-weights" and "kaggle datasets create -p" in told[1]
    before = path.read_bytes()
    assert fetch_weights([TINY], tmp_path / "w") == [f"{path}: already there"]
    assert len(hub) == 1 and path.read_bytes() == before


def test_a_silent_hub_leaves_nothing(monkeypatch, tmp_path):
    def silent(name, pretrained=False, **arguments):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", silent)
    with pytest.raises(ValueError, match=r"no weights for test_resnet \(test_resnet\): no route to host; check"):
        fetch_weights([TINY], tmp_path / "w")
    assert not list((tmp_path / "w").iterdir())


@pytest.mark.parametrize(
    ("names", "owner", "message"),
    [([TINY, "resnet5"], None, "no recipe 'resnet5'"), ([TINY], "me/x", "--owner must be your name on Kaggle")],
)
def test_slips_are_refused_before_any_download(hub, tmp_path, names, owner, message):
    with pytest.raises(ValueError, match=message):
        fetch_weights(names, tmp_path / "w", owner=owner)
    assert not hub and not (tmp_path / "w").exists()
