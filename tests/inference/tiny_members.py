"""Small checkpoints with random weights, and small photographs of nothing."""

from pathlib import Path

import cv2
import numpy as np
import torch

from cassava_kit.models.checkpoint import CheckpointInfo, save_checkpoint
from cassava_kit.models.network import create_model

PRIOR = (0.05, 0.10, 0.11, 0.62, 0.12)


def write_checkpoint(
    path: Path, model: str = "test_resnet", *, size: tuple[int, int] = (32, 32), fold: int = 0, **changes: object
) -> Path:
    """A checkpoint whose answers differ from image to image, though its weights are random."""
    torch.manual_seed(sum(path.name.encode()))
    facts = {
        "model": model,
        "model_args": {"img_size": size} if "vit" in model else {},
        "n_classes": 5,
        "input_size": size,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "recipe": path.stem.split("-")[0],
        "fold": fold,
        "prior": PRIOR,
    }
    info = CheckpointInfo(**(facts | changes))
    net = create_model(model, info.n_classes, model_args=info.model_args).eval()
    spread_answers(net, size)
    save_checkpoint(path, net.state_dict(), info)
    return path


@torch.no_grad()
def spread_answers(net: torch.nn.Module, size: tuple[int, int]) -> None:
    """Norms with statistics, and a head scaled so that the logits of colour fields have mean 0 and deviation 2."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    head = net.get_classifier()
    head.weight.normal_()
    head.bias.zero_()
    fields = [torch.from_numpy(colour_field(1000 + i, size)).permute(2, 0, 1) for i in range(32)]
    logits = net((torch.stack(fields) / 255 - 0.45) / 0.225)
    head.weight.mul_(2 / logits.std(0)[:, None])
    head.bias.copy_(-logits.mean(0) * 2 / logits.std(0))


def colour_field(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Smooth random colours, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (5, 6, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)


def write_image(path: Path, seed: int, *, size: tuple[int, int] = (60, 80)) -> Path:
    """A colour field as a JPEG."""
    assert cv2.imwrite(str(path), colour_field(seed, size), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return path
