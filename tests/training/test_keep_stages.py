"""keep_stages: the top stages and the head learn as in a loop written by hand; below nothing moves and nothing is kept.

The loop takes the batches that the run saw, and names the frozen parts itself.
"""

import math
from dataclasses import replace as with_options

import pytest
import timm
import torch
from safetensors.torch import load_file
from test_step import IMAGENET, PLAIN, normalised, smoothed
from tiny import SILENT, TINY
from torch.autograd.graph import saved_tensors_hooks

from cassava_kit.errors import UserError
from cassava_kit.models.network import create_model, free_stages, keep_frozen
from cassava_kit.settings import replace
from cassava_kit.training.checks import check_run
from cassava_kit.training.config import RunConfig
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.module import Classifier
from cassava_kit.training.recipes import recipe

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "pos_drop_rate": 0.5}
VIT_FROZEN = ("cls_token", "pos_embed", "patch_embed.", "blocks.0.", "blocks.1.")
RESNET_FROZEN = ("conv1.", "bn1.", "layer1.", "layer2.")
CASES = {
    "vit": (replace(PLAIN, model="vit_tiny_patch16_224", model_args=VIT, keep_stages=1, ema=0.9), VIT_FROZEN),
    "cnn": (replace(PLAIN, keep_stages=2), RESNET_FROZEN),
}


def record(config: RunConfig, data, out, monkeypatch):
    """Train a fold; return the batches of its steps, the weights before the first, and the result."""
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    first: dict[str, torch.Tensor] = {}
    plain = Classifier.training_step

    def watched(self, batch, n):
        if not first:
            first.update({name: value.clone() for name, value in self.model.state_dict().items()})
        batches.append((batch[0].clone(), batch[1].clone()))
        return plain(self, batch, n)

    monkeypatch.setattr(Classifier, "training_step", watched)
    return batches, first, fit_fold(config, data, 0, out, options=SILENT)


def by_hand(config: RunConfig, batches, first, frozen: tuple[str, ...], statistics) -> dict[str, torch.Tensor]:
    """The weights that a plain loop of torch learns where these parts neither learn nor know that they are trained."""
    model = timm.create_model(config.model, num_classes=5, **config.model_args)
    model.load_state_dict(first)
    model.train()
    for name, module in model.named_modules():
        if f"{name}.".startswith(frozen) or name == "pos_drop":
            module.eval()
    learning = {name: p for name, p in model.named_parameters() if not name.startswith(frozen)}
    groups = [
        {"params": [p for p in learning.values() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learning.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    for n, (images, labels) in enumerate(batches):
        log_p = torch.log_softmax(model(normalised(images, statistics)), dim=1)
        loss = -(smoothed(torch.eye(5)[labels], config.label_smoothing) * log_p).sum(dim=1).mean()
        gradients = torch.autograd.grad(loss, list(learning.values()))
        for p, gradient in zip(learning.values(), gradients, strict=True):
            p.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * n / len(batches)))
        torch.nn.utils.clip_grad_norm_(list(learning.values()), config.clip_norm)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("case", ["vit", "cnn"])
def test_the_top_learns_what_a_loop_by_hand_learns(case, data, tmp_path, monkeypatch):
    config, frozen = CASES[case]
    config = replace(config, ema=None)
    statistics = ((0.5,) * 3, (0.5,) * 3) if case == "vit" else IMAGENET
    batches, first, result = record(config, data, tmp_path, monkeypatch)
    last, ours = by_hand(config, batches, first, frozen, statistics), load_file(result.checkpoint)
    for name, value in last.items():
        way = (value - first[name]).double().norm()
        assert (ours[name].double() - value.double()).norm() <= 0.002 * way + 1e-6, name
    moved = {name for name, value in ours.items() if not torch.equal(value, first[name])}
    assert moved == {name for name in first if not name.startswith(frozen)}


@pytest.mark.parametrize("case", ["vit", "cnn"])
def test_what_is_frozen_stays_bit_for_bit_batchnorm_statistics_and_an_average_included(
    case, data, tmp_path, monkeypatch
):
    config, frozen = CASES[case]
    _, first, result = record(replace(config, ema=0.9), data, tmp_path, monkeypatch)
    kept = {name: value for name, value in load_file(result.checkpoint).items() if name.startswith(frozen)}
    assert len(kept) > 8 and all(torch.equal(value, first[name]) for name, value in kept.items())
    assert case == "vit" or any(name.endswith("running_var") for name in kept)


@pytest.mark.parametrize("case", ["vit", "cnn"])
def test_no_activation_of_a_frozen_stage_is_kept_for_a_pass_backward(case):
    config = CASES[case][0]
    model = create_model(config.model, 5, model_args=config.model_args)
    images = torch.randn(2, 3, 32, 32)

    def kept() -> int:
        sizes: list[int] = []
        with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model.train()
            keep_frozen(model)
            model(images)
        return sum(sizes)

    whole = kept()
    seen = {}
    last_frozen = "blocks.1" if case == "vit" else "layer2"
    model.get_submodule(last_frozen).register_forward_hook(
        lambda m, _, y: seen.update(grad=y.requires_grad, mode=m.training)
    )
    free_stages(model, config.keep_stages)
    assert kept() < 0.5 * whole and seen == {"grad": False, "mode": False}


def test_modes_are_set_again_at_every_epoch():
    module = Classifier(CASES["vit"][0], ("a", "b"), 1)
    module.train()
    module._trainer = type("T", (), {"current_epoch": 1})()
    module.on_train_epoch_start()
    model = module.model
    still = [model.patch_embed, model.pos_drop, model.blocks[0], model.blocks[1].attn, model.blocks[1]]
    assert not any(part.training for part in still) and model.blocks[2].training and model.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_stages": 5}, r"keep_stages must be less than the 5 stages of resnet18, got 5; leave it out"),
        ({"model": "pit_ti_224", "model_args": {}, "image_size": 224, "keep_stages": 1}, "names no stages"),
    ],
)
def test_more_stages_than_there_are_is_refused_before_training(data, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        check_run(replace(TINY, **changes), data, [0], with_options(SILENT))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["keep_stages=1", "unfreeze_every=1"], "unfreeze_every frees more; drop one"),
        (["keep_stages=1", "freeze_backbone=True"], "no effect on a frozen backbone"),
        (["layer_decay_by=block"], "no effect without layer_decay"),
        (["keep_stages=-1"], "greater than or equal to 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        recipe("resnet18").with_settings(settings)
