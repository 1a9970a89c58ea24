"""Rates by stage, optimisers and schedules: against torch's own steps and against the formulas."""

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from cassava_kit.models.network import args_for_size, create_model, free_stages, stages
from cassava_kit.training.config import RunConfig
from cassava_kit.training.optimizers import attach_schedule, lr_factor, lr_scales, make_optimizer, parameter_groups
from cassava_kit.training.recipes import recipe

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def config(**changes) -> RunConfig:
    return RunConfig.from_values({"recipe": "r", "model": "resnet10t", **changes})


def problem(seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(6, 3), torch.randn(16, 6), torch.randint(3, (16,))


@pytest.mark.parametrize(
    ("model", "args", "n_stages"),
    [
        ("resnet10t", {}, 5),
        ("vit_tiny_patch16_224", VIT, 4),
        ("mobilenetv2_050", {}, 8),
        ("vgg11", {}, 8),
        ("convnext_atto", {}, 5),
    ],
)
def test_stages_hold_every_weight_once_but_for_the_classifier_and_what_timm_groups_with_it(model, args, n_stages):
    with torch.device("meta"):
        network = create_model(model, 5, model_args=args)
    parts = stages(network)
    names = [name for part in parts for name in part]
    everything = {name for name, _ in network.named_parameters()}
    heads = {"resnet10t": {"fc"}, "vgg11": {"head", "pre_logits"}, "mobilenetv2_050": {"classifier"}}
    assert len(parts) == n_stages and len(names) == len(set(names))
    assert {name.split(".")[0] for name in everything - set(names)} == heads.get(model, {"head"})


BY_LAYER = ["convnext_small", "tiny_vit", "eva02_small", "vit_base_clip", "dinov2_small", "efficientnet_b4", "resnet50"]


@pytest.mark.parametrize("name", BY_LAYER)
def test_rates_and_decay_by_layer_are_timms(name):
    """timm.optim.param_groups_layer_decay, the reference, of the recipe's network at full size."""
    settings = recipe(name)
    by_block = settings.with_settings(["layer_decay=0.7", "layer_decay_by=block", "weight_decay=0.1"])
    args = args_for_size(settings.model, settings.image_size, settings.model_args)
    with torch.device("meta"):
        model = create_model(settings.model, 5, model_args=args)
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(model, weight_decay=0.1, no_weight_decay_list=exempt, layer_decay=0.7)
    expected = {id(p): (group["lr_scale"], group["weight_decay"]) for group in theirs for p in group["params"]}
    ours = parameter_groups(model, lr=1.0, weight_decay=0.1, scales=lr_scales(model, by_block))
    found = {id(p): (group["lr"], group["weight_decay"]) for group in ours for p in group["params"]}
    assert found.keys() == expected.keys() and len({rate for rate, _ in found.values()}) > 10
    for each, (rate, decay) in expected.items():
        assert found[each] == (pytest.approx(rate), decay)


def test_each_stage_learns_at_its_share_of_the_one_above():
    model = create_model("vit_tiny_patch16_224", 5, model_args=VIT)
    scales = lr_scales(model, config(layer_decay=0.5, backbone_lr_scale=0.8))
    assert scales["head.weight"] == 1
    for depth, name in enumerate(("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight")):
        assert scales[name] == pytest.approx(0.8 * 0.5 ** (4 - depth))
    deep = lr_scales(model, config(layer_decay=0.5))
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, scales=deep)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["lr"] for group in groups} == {1.0, 0.5, 0.25, 0.125, 0.0625}
    decaying = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    positions = {"pos_embed", "cls_token"}
    expected = {id(p) for name, p in model.named_parameters() if p.ndim > 1 and name not in positions}
    assert decaying == expected


def test_stages_are_freed_from_the_top():
    model = create_model("resnet10t", 5)

    def free() -> set[str]:
        return {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}

    free_stages(model, 0)
    assert free() == {"fc"}
    free_stages(model, 2)
    assert free() == {"fc", "layer4", "layer3"}
    free_stages(model, 99)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["adam", "adamw", "adadelta", "sgd"])
def test_optimisers_are_torchs(name):
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adadelta": torch.optim.Adadelta}.get(name)
    (ours, x, y), (theirs, _, _) = problem(), problem()
    one = make_optimizer([{"params": list(ours.parameters())}], name, lr=0.1, nesterov=True)
    other = (
        kind(theirs.parameters(), lr=0.1)
        if kind
        else torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    )
    for _ in range(4):
        for model, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)


def test_rates_warm_up_and_fall_on_half_a_cosine():
    settings = config(epochs=10, warmup_epochs=2)
    assert [lr_factor(step, settings, 100, 20) for step in (0, 9, 19)] == pytest.approx([0.05, 0.5, 1.0])
    assert lr_factor(60, settings, 100, 20) == pytest.approx(0.5)
    assert lr_factor(100, settings, 100, 20) == pytest.approx(0, abs=1e-12)


def test_rates_stay_where_weights_are_averaged():
    settings = config(epochs=10, swa_epochs=4, swa_lr_scale=0.2)
    assert lr_factor(0, settings, 100, 0) == pytest.approx(1)
    assert lr_factor(30, settings, 100, 0) == pytest.approx(0.6)
    assert [lr_factor(step, settings, 100, 0) for step in (60, 75, 99)] == pytest.approx([0.2] * 3)


def test_plateau_lowers_the_rate_when_the_validation_loss_stands():
    model, _, _ = problem()
    settings = config(schedule="plateau", early_stopping=3)
    optimizer = make_optimizer([{"params": list(model.parameters())}], "adamw", lr=settings.lr)
    plan = attach_schedule(optimizer, settings, 10, 0)["lr_scheduler"]
    for loss in (1.0, 1.0, 1.0):
        plan["scheduler"].step(loss)
    assert plan["monitor"] == "val_loss" and optimizer.param_groups[0]["lr"] == pytest.approx(3e-4)


def test_one_cycle_rises_for_a_quarter_and_ends_near_nothing():
    model, _, _ = problem()
    settings = config(schedule="onecycle")
    optimizer = make_optimizer([{"params": list(model.parameters())}], "adamw", lr=settings.lr)
    schedule = attach_schedule(optimizer, settings, 100, 0)["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(1e-3, rel=0.01) and abs(rates.index(max(rates)) - 25) <= 1
    assert rates[-1] < 1e-5 < rates[0] < 1e-4


@pytest.mark.parametrize("total_steps", range(1, 7))
def test_one_cycle_of_a_handful_of_steps(total_steps):
    settings = config(schedule="onecycle")
    model, _, _ = problem()
    optimizer = make_optimizer([{"params": list(model.parameters())}], "adamw", lr=settings.lr)
    schedule = attach_schedule(optimizer, settings, total_steps, 0)["lr_scheduler"]["scheduler"]
    for _ in range(total_steps):
        optimizer.step()
        schedule.step()
        assert 0 < optimizer.param_groups[0]["lr"] <= settings.lr
