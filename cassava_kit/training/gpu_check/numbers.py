"""Part 1 of a GPU check: each network's first batch in every precision against single precision, `check_numbers`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from cassava_kit.models.network import args_for_size, classifier_names, create_model
from cassava_kit.models.precision import compare_precisions, judge_half, logits_in, supports_bfloat16
from cassava_kit.training.config import RunConfig
from cassava_kit.training.gpu_check.findings import Bound
from cassava_kit.training.gpu_check.setting import Part, Setting

N_CLASSES = 5
LOGITS_STD = 2.0
FINITE = Bound(name="not_finite", at_most=0)
# Random weights amplify rounding with depth: by .06 to .09 of the logits in MobileNetV2 and EfficientNet-B4 on a CPU. A
# network that is wrong is off by about 1.
HALF = (Bound(name="autocast_not_finite", at_most=0), Bound(name="autocast_logits", at_most=0.5))


def check_numbers(setting: Setting, part: Part) -> None:
    """Compare float16 weights, autocast and bfloat16 with float32, on random weights and drawn colours.

    A recipe that trains in mixed precision must be right in autocast; the others' differences are told.
    """
    for name, config in part.each(different_networks(setting.sizes.numbers)):
        with single_precision_exact():
            model, images = first_batch(config, setting.sizes.first_batch, setting.device)
            with torch.inference_mode():
                reference = logits_in(model, images, "fp32")
                values: dict[str, float | str] = {"not_finite": float((~reference.isfinite().all(dim=1)).sum())}
                verdict, found = judge_half(model, images)
                agreements = {"half": found["fp16"], "autocast": found["fp16-autocast"]}
                if supports_bfloat16(setting.device):
                    agreements["bf16"] = compare_precisions(logits_in(model, images, "bf16"), reference)
        values["fp16"] = verdict
        for precision, each in agreements.items():
            values |= {f"{precision}_labels": each.equal_labels, f"{precision}_difference": each.probability}
            values |= {f"{precision}_logits": each.logits, f"{precision}_not_finite": float(each.non_finite)}
        part.add(name, values, (FINITE, *HALF) if config.precision == "16-mixed" else (FINITE,))


def different_networks(configs: Sequence[RunConfig]) -> list[tuple[str, RunConfig]]:
    """Return the configurations of different networks, those in mixed precision first, by network and image size."""
    found: dict[str, tuple[str, RunConfig]] = {}
    for config in sorted(configs, key=lambda config: config.precision != "16-mixed"):
        network = json.dumps([config.model, config.model_args, config.image_size, config.head], sort_keys=True)
        found.setdefault(network, (f"{config.recipe} at {config.image_size}", config))
    return list(found.values())


def first_batch(config: RunConfig, n: int, device: torch.device) -> tuple[nn.Module, torch.Tensor]:
    """Return a network with random weights on a device, and normalised images (n, 3, S, S).

    BatchNorm has the statistics of the batch, and the logits a spread of a trained network's.
    """
    torch.manual_seed(config.seed)
    args = args_for_size(config.model, config.image_size, config.model_args)
    with torch.device(device):  # where weights are drawn thirty times faster
        model = create_model(config.model, N_CLASSES, model_args=args, head=config.head)
        images = torch.randn(n, 3, config.image_size // 8, config.image_size // 8)
    model = model.to(device, memory_format=torch.channels_last)
    images = nn.functional.interpolate(images, (config.image_size, config.image_size), mode="bilinear")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # a mean over batches: one batch gives its own
        model.train()(images)
        logits = model.eval()(images)
        for name in classifier_names(model):
            last = [layer for layer in model.get_submodule(name).modules() if isinstance(layer, nn.Linear)][-1]
            last.weight.mul_(LOGITS_STD / logits.std().clamp(min=1e-6))
    return model, images


@contextmanager
def single_precision_exact() -> Iterator[None]:
    """Compute float32 convolutions and products in float32 in the block: GPUs may round their factors (TF32)."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
