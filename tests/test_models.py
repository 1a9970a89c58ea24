"""Models, heads, freezing, and weights from files."""

import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from cassava_kit.models import (
    create_model,
    freeze_backbone,
    head_parameters,
    image_statistics,
    keep_frozen,
    load_weights,
)

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def test_linear_head_is_plain_timm():
    ours, theirs = create_model("resnet10t", 5), timm.create_model("resnet10t", num_classes=5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("resnet10t", {}, 32),
        ("vgg11", {}, 64),
        ("densenet121", {}, 32),
        ("vit_tiny_patch16_224", VIT, 32),
        ("mobilenetv2_050", {}, 32),
    ],
)
def test_dense_head_has_three_dense_layers_and_predicts_all_classes(name, args, size):
    model = create_model(name, 5, model_args=args, head="dense").eval()
    head = [
        module for module in model.get_submodule(head_prefix(model)).modules() if isinstance(module, torch.nn.Linear)
    ]
    assert len(head) == 3
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)


def head_prefix(model) -> str:
    name = model.pretrained_cfg["classifier"]
    return name if isinstance(name, str) else name[0]


@pytest.mark.parametrize(("name", "args"), [("mobilenetv2_050", {}), ("resnet10t", {}), ("vit_tiny_patch16_224", VIT)])
def test_a_new_head_starts_near_even_odds(name, args):
    torch.manual_seed(0)
    model = create_model(name, 5, model_args=args).eval()
    with torch.inference_mode():
        p = model(torch.randn(8, 3, 32, 32) * 2).softmax(dim=1)
    assert (p - 0.2).abs().max() < 0.1


def test_unknown_model_names_near_ones():
    with pytest.raises(ValueError, match="timm has no model 'resnet51'"):
        create_model("resnet51", 5)


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("resnet10t", {"img_sizes": 64}, "unexpected keyword argument 'img_sizes'"),
        ("resnet50.nosuchtag", {}, "nosuchtag"),
        ("vit_tiny_patch16_224", {"embed_dim": 32, "num_heads": 3}, "divisible"),
    ],
)
def test_what_timm_cannot_make_is_one_line(name, args, reason):
    with pytest.raises(ValueError, match=f"timm cannot make {name} .*{reason}") as caught:
        create_model(name, 5, model_args=args)
    assert "\n" not in str(caught.value)


def test_statistics_are_the_architectures_own():
    mean, std = image_statistics(create_model("vit_tiny_patch16_224", 5, model_args=VIT))
    assert mean == (0.5, 0.5, 0.5) and std == (0.5, 0.5, 0.5)


def test_frozen_backbone_stands_still_batchnorm_included():
    model = create_model("resnet10t", 5, head="dense")
    freeze_backbone(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    keep_frozen(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(torch.randn(8, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and moved <= head_parameters(model)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_weights_round_trip_through_files_and_wrappers(tmp_path, suffix, prefix):
    source, target = create_model("resnet10t", 7), create_model("resnet10t", 5)
    tensors = {prefix + name: value for name, value in source.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save({"state_dict": tensors, "epoch": 3}, path)
    report = load_weights(target, path)
    assert torch.equal(target.conv1[0].weight, source.conv1[0].weight)
    assert set(report.reshaped) == {"fc.weight", "fc.bias"} == set(report.missing)
    assert "tensors loaded" in str(report) and "2 other shape (fc." in str(report)


def test_bare_backbone_takes_and_gives_weights(tmp_path):
    backbone = create_model("resnet10t", 0)
    save_file(backbone.state_dict(), tmp_path / "b.safetensors")
    model = create_model("resnet10t", 5)
    report = load_weights(model, tmp_path / "b.safetensors")
    assert set(report.missing) == {"fc.weight", "fc.bias"}
    load_weights(create_model("resnet10t", 0), tmp_path / "b.safetensors")


def test_weights_that_match_nothing_are_refused(tmp_path):
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="matches nothing of the model"):
        load_weights(create_model("resnet10t", 5), tmp_path / "w.safetensors")


def test_a_head_alone_is_no_match(tmp_path):
    model = create_model("resnet10t", 5)
    save_file({"fc.weight": model.fc.weight.data, "fc.bias": model.fc.bias.data}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="matches nothing of the model"):
        load_weights(model, tmp_path / "w.safetensors")


class Payload:
    """What an attacker would put into a pickle."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    path = tmp_path / "w.pth"
    torch.save({"conv1.weight": Payload()}, path)
    with pytest.raises(ValueError, match="not a plain state dict"):
        load_weights(create_model("resnet10t", 5), path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="not a plain state dict"):
        load_weights(create_model("resnet10t", 5), path)
    assert "unpickled" not in capsys.readouterr().out


def test_missing_or_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights file .*x\.pth"):
        load_weights(create_model("resnet10t", 5), tmp_path / "x.pth")
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must be a \.safetensors or"):
        load_weights(create_model("resnet10t", 5), tmp_path / "x.h5")
