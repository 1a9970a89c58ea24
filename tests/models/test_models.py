"""Models, heads, freezing, and weights from files."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from cassava_kit.errors import UserError
from cassava_kit.models.network import (
    args_for_size,
    create_model,
    freeze_backbone,
    head_parameters,
    image_statistics,
    keep_frozen,
    meta_model,
)
from cassava_kit.models.weights import load_tensors, load_weights

REAL = Path(os.environ.get("CASSAVA_KIT_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
DINOV2 = REAL / "weights" / "vit_small_patch14_dinov2_lvd142m.safetensors"
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
    with pytest.raises(ValueError, match=r"timm has no model 'resnet51' .did you mean .*resnet50"):
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


def tensors_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def shaken(model, seed: int = 1):
    """The model with every tensor drawn anew, BatchNorm's statistics included."""
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return model


def prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def by_number(model, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of `Sequential(*model.children())`, as lightly's examples make a backbone."""
    numbers = {name: str(n) for n, (name, _) in enumerate(model.named_children())}
    parts = {name: name.split(".") for name in tensors}
    return {
        ".".join([numbers.get(parts[name][0], parts[name][0]), *parts[name][1:]]): value
        for name, value in tensors.items()
    }


def wrappings(model, take: dict[str, torch.Tensor], leave: dict[str, torch.Tensor]) -> dict[str, dict]:
    """The layouts of published files, by name; `take` is the network to load, `leave` the copy beside it."""
    mlp = {"0.weight": torch.zeros(8, 4), "2.weight": torch.zeros(2, 8)}
    return {
        "moco v2": {
            "epoch": 200,
            "arch": "resnet50",
            "state_dict": {
                **prefixed("module.encoder_k.", leave),
                **prefixed("module.encoder_q.", take),
                **prefixed("module.encoder_q.fc.", mlp),
                "module.queue": torch.zeros(4, 16),
                "module.queue_ptr": torch.zeros(1, dtype=torch.long),
            },
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03}]},
        },
        "moco v3": {
            "state_dict": {
                **prefixed("module.momentum_encoder.", leave),
                **prefixed("module.base_encoder.", take),
                **prefixed("module.base_encoder.head.", mlp),
                **prefixed("module.predictor.", mlp),
            }
        },
        "dino": {
            "student": {**prefixed("module.backbone.", leave), **prefixed("module.head.", mlp)},
            "teacher": {**prefixed("backbone.", take), **prefixed("head.", mlp)},
            "args": argparse.Namespace(arch="vit_small", patch_size=16),
            "epoch": 100,
        },
        "dinov2": {
            "model": {
                **prefixed("student.backbone.", leave),
                **prefixed("teacher.backbone.", take),
                **prefixed("teacher.dino_head.", mlp),
            }
        },
        "timm's average": {"state_dict": leave, "state_dict_ema": take, "args": argparse.Namespace(lr=1)},
        "compiled": prefixed("_orig_mod.", take),
        "compiled and distributed": {"model": prefixed("module._orig_mod.", take)},
        "lightly's sequence": {
            "state_dict": {
                **prefixed("backbone.", by_number(model, take)),
                **prefixed("backbone_momentum.", by_number(model, leave)),
                **prefixed("projection_head.layers.", mlp),
            },
            "hyper_parameters": {"lr": 0.1},
        },
        "lightly's vision transformer": {"state_dict": prefixed("backbone.vit.", take)},
        "lightly's dino": {
            "state_dict": {**prefixed("student_backbone.", leave), **prefixed("teacher_backbone.", take)}
        },
    }


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("layout", list(wrappings(torch.nn.Module(), {}, {})))
def test_published_layouts_are_unwrapped_to_the_last_tensor(tmp_path, name, layout):
    args = VIT if name.startswith("vit") else {}
    if layout == "lightly's sequence" and args:
        pytest.skip("a Sequential of a ViT's children has no class token")
    source, other = (shaken(create_model(name, 0, model_args=args), seed) for seed in (1, 2))
    torch.save(wrappings(source, tensors_of(source), tensors_of(other))[layout], tmp_path / "w.pth")
    target = create_model(name, 5, model_args=args)
    report = load_weights(target, tmp_path / "w.pth")
    loaded = target.state_dict()
    assert report.random == () and all(torch.equal(loaded[key], value) for key, value in tensors_of(source).items())


def test_a_position_embedding_of_another_size_is_resized_as_timm_does(tmp_path):
    small, large = ({**VIT, "img_size": size} for size in (32, 48))
    source = shaken(create_model("vit_tiny_patch16_224", 0, model_args=large))
    save_file(prefixed("backbone.", tensors_of(source)), tmp_path / "w.safetensors")
    target = create_model("vit_tiny_patch16_224", 5, model_args=small)
    report = load_weights(target, tmp_path / "w.safetensors")
    expected = resample_abs_pos_embed(source.pos_embed, new_size=[4, 4], num_prefix_tokens=1)
    assert target.pos_embed.shape == (1, 17, 32) and torch.allclose(target.pos_embed, expected, atol=1e-6)
    assert set(report.missing) == {"head.weight", "head.bias"} and report.reshaped == ()
    assert torch.equal(target.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)


def test_metas_own_names_are_converted_by_timm(tmp_path):
    """DINOv2's files have a mask token, which timm's filter takes for their mark."""
    source = shaken(create_model("vit_tiny_patch16_224", 0, model_args={**VIT, "init_values": 1.0}))
    torch.save({**tensors_of(source), "mask_token": torch.zeros(1, 32)}, tmp_path / "w.pth")
    target = create_model("vit_tiny_patch16_224", 5, model_args={**VIT, "init_values": 1.0, "img_size": 40})
    assert load_weights(target, tmp_path / "w.pth").random == ()


def test_a_backbone_tensor_that_stays_random_is_an_error_unless_it_is_allowed(tmp_path):
    source = create_model("resnet10t", 5)
    tensors = tensors_of(source)
    del tensors["layer2.0.conv1.weight"], tensors["layer3.0.bn1.running_mean"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"leaves 2 of the backbone's tensors random \(layer2\.0\.conv1\.w"):
        load_weights(create_model("resnet10t", 5), tmp_path / "w.safetensors")
    report = load_weights(create_model("resnet10t", 5), tmp_path / "w.safetensors", partial=True)
    assert report.random == ("layer2.0.conv1.weight", "layer3.0.bn1.running_mean")


@pytest.mark.parametrize(
    ("name", "size", "args", "expected"),
    [
        ("vit_tiny_patch16_224", 64, {}, {"img_size": 64}),
        ("vit_tiny_patch16_224", 224, {}, {}),
        ("vit_tiny_patch16_224", 64, {"img_size": 32}, {"img_size": 32}),
        ("vit_small_patch14_dinov2.lvd142m", 224, {"drop_path_rate": 0.1}, {"drop_path_rate": 0.1, "img_size": 224}),
        ("resnet10t", 64, {}, {}),
    ],
)
def test_a_model_made_for_one_size_is_made_for_the_images(name, size, args, expected):
    assert args_for_size(name, size, args) == expected
    model, image = meta_model(name, size, model_args=args_for_size(name, size))
    assert model(image).shape == (1, 2)


@pytest.mark.skipif(not DINOV2.is_file(), reason=f"no real weights {DINOV2}; set CASSAVA_KIT_REAL_DATA")
def test_dinov2_of_518_pixels_is_whole_at_224():
    name = "vit_small_patch14_dinov2.lvd142m"
    model = create_model(name, 5, model_args=args_for_size(name, 224))
    report = load_weights(model, DINOV2)
    assert report.random == () and set(report.missing) == {"head.weight", "head.bias"}
    published = load_tensors(DINOV2)
    expected = resample_abs_pos_embed(published["pos_embed"].float(), new_size=[16, 16], num_prefix_tokens=1)
    assert torch.allclose(model.pos_embed, expected, atol=1e-3)
    own = model.state_dict()
    assert all(torch.equal(own[key], value.float()) for key, value in published.items() if key != "pos_embed")
